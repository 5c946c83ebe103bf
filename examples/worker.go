// A worker: takes one connection after another and echoes what it says.
//
//	go build worker.go && fdaccept 8888 | fdpool 4 --worker ./worker
//
// fdtools(7) has the rules that it keeps. The queue is used by its number alone: net.FileConn would set
// O_NONBLOCK on it, for all that share it.
package main

import (
	"bytes"
	"log"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
	"unsafe"
)

const (
	queue    = 0
	pollIn   = 0x1
	hangUp   = 0x2010 // POLLRDHUP and POLLHUP
	fionread = 0x541B
)

type pollFd struct {
	fd              int32
	events, revents int16
}

// The watchdog of fdpool --watchdog: the worker says again and again that it is alive, where it waits. A
// goroutine that does nothing else would go on while the worker hangs.
var (
	pause   time.Duration // half of the time that it may be silent; 0 without a watchdog
	manager int
	name    = os.Getenv("NOTIFY_SOCKET") // an @ is the NUL byte of an abstract name here, too
	due     time.Time
)

// wait polls, and says meanwhile that the worker is alive.
func wait(ready []pollFd) syscall.Errno {
	for {
		var limit *syscall.Timespec
		if pause > 0 {
			if !time.Now().Before(due) {
				due = time.Now().Add(pause)
				to := &syscall.SockaddrUnix{Name: name}
				if syscall.Sendto(manager, []byte("WATCHDOG=1"), 0, to) != nil {
					due = time.Now().Add(pause / 10) // there was no room
				}
			}
			left := time.Until(due)
			if left < 0 {
				left = 0
			}
			until := syscall.NsecToTimespec(int64(left))
			limit = &until
		}
		count, _, errno := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&ready[0])),
			uintptr(len(ready)), uintptr(unsafe.Pointer(limit)), 0, 0, 0)
		if errno != syscall.EINTR && (errno != 0 || count > 0) {
			return errno
		}
	}
}

func echo(client *os.File) {
	ready := []pollFd{{fd: int32(client.Fd()), events: pollIn}}
	data := make([]byte, 65536)
	for {
		wait(ready)
		length, err := client.Read(data)
		if err != nil {
			return // the client has ended or gone
		}
		if _, err := client.Write(data[:length]); err != nil {
			return
		}
	}
}

func isPipe(descriptor int) bool {
	var status syscall.Stat_t
	return syscall.Fstat(descriptor, &status) == nil && status.Mode&syscall.S_IFMT == syscall.S_IFIFO
}

func main() {
	if micros, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64); err == nil {
		pause = time.Duration(micros) * time.Microsecond / 2
		manager, _ = syscall.Socket(syscall.AF_UNIX, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
		most := syscall.Timeval{Usec: 100000} // the pool may be stopped, and take nothing
		syscall.SetsockoptTimeval(manager, syscall.SOL_SOCKET, syscall.SO_SNDTIMEO, &most)
	}

	// After TERM, INT or HUP the pipe has come to its end, which cannot be missed.
	var stop [2]int
	if err := syscall.Pipe2(stop[:], syscall.O_CLOEXEC); err != nil {
		log.Fatal(err)
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	go func() {
		<-signals
		syscall.Close(stop[1])
	}()

	payload := make([]byte, 4096)
	control := make([]byte, syscall.CmsgSpace(253*4)+syscall.CmsgSpace(syscall.SizeofUcred))
	for {
		ready := []pollFd{{fd: int32(stop[0]), events: pollIn}, {fd: queue, events: pollIn | 0x2000}}
		errno := wait(ready)
		if errno != 0 {
			log.Fatal("cannot wait: ", errno)
		}
		if ready[0].revents != 0 {
			return
		}

		// The kernel drops what finds no free number: there must be two.
		var spare [2]int
		if err := syscall.Pipe2(spare[:], syscall.O_CLOEXEC); err != nil {
			log.Fatal("no free descriptors: ", err)
		}
		syscall.Close(spare[0])
		syscall.Close(spare[1])

		flags := syscall.MSG_DONTWAIT | syscall.MSG_CMSG_CLOEXEC
		length, parts, flags, _, err := syscall.Recvmsg(queue, payload, control, flags)
		if err == syscall.EAGAIN || err == syscall.EINTR || err == syscall.ECONNRESET {
			continue // another worker was faster, or no end
		} else if err != nil {
			log.Fatal("cannot receive a connection: ", err)
		}

		var descriptors []int
		messages, _ := syscall.ParseSocketControlMessage(control[:parts])
		for i := range messages {
			if rights, err := syscall.ParseUnixRights(&messages[i]); err == nil {
				descriptors = append(descriptors, rights...)
			}
		}
		count := len(descriptors)
		hasLease := count == 2 && isPipe(descriptors[1]) &&
			bytes.HasPrefix(payload[:length], []byte("FDTOOLS=1\n"))
		waiting := int32(0)
		if flags&syscall.MSG_CTRUNC != 0 {
			// Not a connection.
		} else if count == 1 || hasLease {
			syscall.SetNonblock(descriptors[0], false)
			client := os.NewFile(uintptr(descriptors[0]), "client")
			echo(client)
			client.Close()
			descriptors = descriptors[1:]
		} else if count == 0 && length == 0 && ready[1].revents&hangUp != 0 {
			syscall.Syscall(syscall.SYS_IOCTL, queue, fionread, uintptr(unsafe.Pointer(&waiting)))
			if waiting == 0 {
				return
			}
		}
		for _, descriptor := range descriptors {
			// Closing a stranger's socket could block.
			syscall.SetsockoptLinger(descriptor, syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{})
			syscall.Close(descriptor)
		}
	}
}
