// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Ports of the servers in a pod.
const (
	portSink  = 9001 // takes and forgets
	portSmall = 9002 // answers smallSize bytes with as many
	portLarge = 9003 // answers largeSize bytes with as many
	portOnce  = 9004 // as portSmall, one request per connection
	portIdle  = 9005 // as portOnce, and keeps the connection
	portDNS   = 53   // UDP: one address for any name
)

const (
	smallSize = 64
	largeSize = 16 << 10
	sinkSize  = 1 << 20 // is taken at once
)

// onceThreads are how many connections to portOnce are served at once.
const onceThreads = 64

// serve runs all servers of a pod until the process is killed.
func serve() error {
	small := make([]byte, smallSize) // of the one thread of portIdle
	for _, s := range []struct {
		port    uint16
		threads int
		take    func(fd int)
	}{
		{portSink, 1, inThread(sink)},
		{portSmall, 1, inThread(func(fd int) { respond(fd, make([]byte, smallSize)) })},
		{portLarge, 1, inThread(func(fd int) { respond(fd, make([]byte, largeSize)) })},
		{portOnce, onceThreads, func(fd int) {
			respond(fd, make([]byte, smallSize)) // on the stack; until the client closes
			closeFD(fd)
		}},
		{portIdle, 1, func(fd int) {
			if n, err := readFull(fd, small); err != nil || n == 0 || writeFull(fd, small) != nil {
				closeFD(fd)
			}
		}},
	} {
		l, err := listen(s.port)
		if err != nil {
			return fmt.Errorf("listen on %d: %w", s.port, err)
		}
		for range s.threads {
			go acceptor(l, s.take)
		}
	}
	udp, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Bind(udp, &unix.SockaddrInet4{Port: portDNS})
	}
	if err != nil {
		return fmt.Errorf("serve DNS: %w", err)
	}
	go answerNames(udp)
	fmt.Println(readyLine)
	select {}
}

// inThread gives each connection a thread.
func inThread(serve func(fd int)) func(fd int) {
	return func(fd int) {
		go func() {
			runtime.LockOSThread()
			serve(fd)
			closeFD(fd)
		}()
	}
}

// acceptor hands connections to take. Without descriptors to be had there is
// nothing to do but to end.
func acceptor(l int, take func(fd int)) {
	runtime.LockOSThread()
	for {
		fd, err := accept(l)
		if err != nil {
			fmt.Fprintln(os.Stderr, "accept:", err)
			os.Exit(1)
		}
		take(fd)
	}
}

// sink takes what comes. Here and below the client tells of errors.
func sink(fd int) {
	for {
		if n, err := discard(fd, sinkSize); n == 0 || err != nil {
			return
		}
	}
}

// respond gives back as many bytes as came, b's length at a time.
func respond(fd int, b []byte) {
	for {
		if n, err := readFull(fd, b); n == 0 || err != nil {
			return
		}
		if writeFull(fd, b) != nil {
			return
		}
	}
}

// answerNames makes an answer of every query: the question and one address.
func answerNames(fd int) {
	runtime.LockOSThread()
	b := make([]byte, 512)
	for {
		from := &address{}
		n, err := recvFrom(fd, b, from)
		if err != nil || n < 12 {
			continue
		}
		binary.BigEndian.PutUint16(b[2:], 0x8180) // an answer, no error
		binary.BigEndian.PutUint16(b[6:], 1)
		reply := append(b[:n], 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 10, 96, 0, 1)
		_, _ = sendTo(fd, reply, from)
	}
}
