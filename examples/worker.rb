#!/usr/bin/env ruby
# A worker: takes one connection after another and echoes what it says.
#
#     fdaccept 8888 | fdpool 4 --worker ruby worker.rb
#
# fdtools(7) has the rules that it keeps.
require "fiddle"
require "socket"

POLLHUP, POLLRDHUP, FIONREAD = 0x10, 0x2000, 0x541B
QUEUE = Socket.for_fd(0)
POLL = Fiddle::Function.new(
  Fiddle::Handle::DEFAULT["poll"], [Fiddle::TYPE_VOIDP, Fiddle::TYPE_LONG, Fiddle::TYPE_INT], Fiddle::TYPE_INT
)

def other_side_is_gone?
  ready = [0, POLLRDHUP, 0].pack("iss")
  POLL.call(ready, 1, 0) > 0 && ready.unpack("iss")[2] & (POLLHUP | POLLRDHUP) != 0
end

def nothing_waits?
  waiting = [0].pack("i")
  QUEUE.ioctl(FIONREAD, waiting)
  waiting.unpack1("i") == 0
end

# With fdpool --watchdog the worker says again and again that it is alive, where it waits. A thread that
# does nothing else would go on while the worker hangs.
PAUSE = ENV["WATCHDOG_USEC"].to_i / 2e6
MANAGER = Socket.new(:UNIX, :DGRAM)
$due = 0

def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)

# Waits until one of them can be read, and returns which.
def wait(*inputs)
  return IO.select(inputs)[0] if PAUSE == 0

  loop do
    if now >= $due
      $due = now + PAUSE
      begin
        name = Socket.sockaddr_un(ENV["NOTIFY_SOCKET"].sub(/\A@/, "\0"))
        MANAGER.sendmsg_nonblock("WATCHDOG=1", 0, name)
      rescue SystemCallError
        $due -= PAUSE * 0.9 # there was no room
      end
    end
    ready, = IO.select(inputs, nil, nil, [$due - now, 0].max)
    return ready if ready
  end
end

def echo(client)
  client.sync = true
  loop do
    wait(client)
    client.write(client.readpartial(65536)) # these wait for what is non-blocking
  end
rescue SystemCallError, IOError
  # The client has ended or gone.
end

# TERM, INT and HUP end up in a pipe, where they cannot be missed.
stop, told = IO.pipe
%w[TERM INT HUP].each { |signal| trap(signal) { told.write_nonblock(".", exception: false) } }

loop do
  ready = wait(stop, QUEUE)
  break if ready.include?(stop)

  # The kernel drops what finds no free number: there must be two.
  2.times.map { QUEUE.dup }.each(&:close)
  begin
    # This sets O_NONBLOCK neither on the queue nor on what comes.
    received = QUEUE.recvmsg_nonblock(4096, 0, 2048, scm_rights: true, exception: false)
  rescue Errno::ECONNRESET, Errno::EINTR
    next # no end
  end
  next if received == :wait_readable # another worker was faster

  payload, _, flags, *control = received
  descriptors = control.select { |part| part.cmsg_is?(:SOCKET, :RIGHTS) }.flat_map(&:unix_rights)
  has_lease = descriptors.size == 2 && payload.start_with?("FDTOOLS=1\n") && descriptors[1].stat.pipe?
  if flags & Socket::MSG_CTRUNC != 0
    # Not a connection.
  elsif descriptors.size == 1 || has_lease
    echo(descriptors[0])
  elsif descriptors.empty? && payload.empty? && other_side_is_gone? && nothing_waits?
    break
  end
  descriptors.each do |descriptor|
    # Closing a stranger's socket could block.
    descriptor.setsockopt(:SOCKET, :LINGER, [0, 0].pack("ii")) if descriptor.is_a?(BasicSocket)
    descriptor.close
  end
end
