#!/usr/bin/perl
# A worker: takes one connection after another and echoes what it says.
#
#     fdaccept 8888 | fdpool 4 --worker perl worker.pl
#
# fdtools(7) has the rules that it keeps. Perl has no recvmsg, and Socket::MsgHdr does not tell of
# MSG_CTRUNC; so this calls the kernel, with structures as they are on 64-bit machines.
use strict;
use warnings;
use Fcntl qw(F_GETFL F_SETFL O_NONBLOCK);
use IO::Poll qw(POLLHUP POLLIN);
use POSIX qw(:signal_h);
use Socket qw(AF_UNIX MSG_CTRUNC MSG_DONTWAIT SCM_RIGHTS SOCK_DGRAM SOL_SOCKET SO_LINGER SO_SNDTIMEO);
use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC);
require 'syscall.ph';

use constant { MSG_CMSG_CLOEXEC => 0x40000000, POLLRDHUP => 0x2000, FIONREAD => 0x541B };

# Receives one message: its payload, its flags and its descriptors; nothing if there is an error.
sub receive {
    vec(my $payload = '', 4095, 8) = 0;
    vec(my $control = '', 2047, 8) = 0;
    my $iov     = pack('P Q', $payload, 4096);
    my $message = pack('x16 P Q P Q x8', $iov, 1, $control, 2048);
    my $length  = syscall(SYS_recvmsg(), 0, $message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    return if $length < 0;
    my ($end, $flags) = unpack('x40 Q l', $message);
    my ($at, @descriptors) = (0);
    while ($at < $end) {
        my ($size, $level, $type) = unpack("x$at Q l l", $control);
        my $data = substr($control, $at + 16, $size - 16);
        push @descriptors, unpack('l*', $data) if $level == SOL_SOCKET && $type == SCM_RIGHTS;
        $at += $size + 7 & ~7;
    }
    return (substr($payload, 0, $length), $flags, @descriptors);
}

# With fdpool --watchdog the worker says again and again that it is alive, where it waits. A process that
# does nothing else would go on while the worker hangs. Returns how many seconds to wait until the next
# time; -1 without a watchdog.
my ($pause, $due) = (($ENV{WATCHDOG_USEC} // 0) / 2e6, 0);
socket(my $manager, AF_UNIX, SOCK_DGRAM, 0) or die "cannot make a socket: $!\n";
# The pool may be stopped, and take nothing.
setsockopt($manager, SOL_SOCKET, SO_SNDTIMEO, pack('l! l!', 0, 100000));

sub say_alive {
    return -1 if !$pause;
    my $now = clock_gettime(CLOCK_MONOTONIC);
    if ($now >= $due) {
        (my $name = $ENV{NOTIFY_SOCKET}) =~ s/^@/\0/;
        my $is_said = send($manager, 'WATCHDOG=1', 0, pack('S a*', AF_UNIX, $name));
        $due = $now + ($is_said ? $pause : $pause / 10);    # there may be room then
    }
    return $due - $now;
}

sub echo {
    my ($client) = @_;
    fcntl($client, F_SETFL, fcntl($client, F_GETFL, 0) & ~O_NONBLOCK);
    my $poll = IO::Poll->new;
    $poll->mask($client, POLLIN);
    while (1) {
        next if $poll->poll(say_alive()) < 1;    # it is time again
        last if !sysread($client, my $data, 65536);
        while (length $data) {
            my $sent = syswrite($client, $data) // return;    # the client has gone
            substr($data, 0, $sent) = '';
        }
    }
}

# TERM, INT and HUP are read from a descriptor. A handler in %SIG would run between two operations:
# that of a signal which comes just before a wait runs after it.
my @stop = (SIGTERM, SIGINT, SIGHUP);
my $mask = 0;
$mask |= 1 << ($_ - 1) for @stop;
sigprocmask(SIG_BLOCK, POSIX::SigSet->new(@stop));
$SIG{PIPE} = 'IGNORE';
my $told = syscall(SYS_signalfd4(), -1, pack('Q', $mask), 8, 02000000);    # SFD_CLOEXEC
open(my $stop, '<&=', $told) or die "cannot make a descriptor of signals: $!\n";

my $poll = IO::Poll->new;
$poll->mask($stop, POLLIN);
$poll->mask(*STDIN, POLLIN | POLLRDHUP);
while (1) {
    $poll->poll(say_alive()) >= 0 or $!{EINTR} or die "cannot wait: $!\n";
    last if $poll->events($stop);

    # The kernel drops what finds no free number: there must be two.
    my @spare = map { POSIX::dup(0) // die "no free descriptors: $!\n" } 1 .. 2;
    POSIX::close($_) for @spare;

    my ($payload, $flags, @descriptors) = receive();
    if (!defined $payload) {
        next if $!{EAGAIN} || $!{EINTR} || $!{ECONNRESET};    # another worker was faster, or no end
        die "cannot receive a connection: $!\n";
    }
    # Each is closed when its handle goes.
    my @handles = map { open(my $handle, '+<&=', $_); $handle } @descriptors;
    my $is_payload = $payload =~ /\AFDTOOLS=1\n/;
    if ($flags & MSG_CTRUNC) {
        # Not a connection.
    } elsif (@handles == 1 || (@handles == 2 && $is_payload && -p $handles[1])) {
        echo($handles[0]);
    } elsif (!@handles && $payload eq '' && $poll->events(*STDIN) & (POLLHUP | POLLRDHUP)) {
        ioctl(STDIN, FIONREAD, my $waiting = pack('i', 0));
        last if unpack('i', $waiting) == 0;
    }
    # Closing a stranger's socket could block.
    setsockopt($_, SOL_SOCKET, SO_LINGER, pack('ii', 0, 0)) for @handles;
}
