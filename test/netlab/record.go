// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Recorder keeps every frame that passes a link, in both directions.
type Recorder struct {
	file *os.File
	raw  syscall.RawConn
	keep func(*Packet) bool

	reading sync.WaitGroup // ends when Stop moves the read deadline
	once    sync.Once

	mu      sync.Mutex
	packets []*Packet // guarded by mu
	err     error     // guarded by mu; what ended the reading
	dropped uint32    // guarded by mu
}

// recordBuffer is how much the kernel may hold for a recorder: at 10 Gbit/s
// 128 MiB is a tenth of a second in which the reader may sleep.
const recordBuffer = 128 << 20

// maxFrame is more than a GSO frame with its headers (65,535 and 14).
const maxFrame = 1 << 17

// Record starts to record a link of the host: "eth0", a [Node.Port] of the
// fabric, a [Pod.VethName] of a node. With keep, only packets it says true to
// are kept; it runs on the recorder's goroutine.
func (h *Host) Record(link string, keep func(*Packet) bool) (*Recorder, error) {
	var fd int
	err := h.netlink(func(nl *netlink.Handle) error {
		l, err := nl.LinkByName(link)
		if err != nil {
			return fmt.Errorf("find %s: %w", link, err)
		}
		fd, err = packetSocket(l.Attrs().Index)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("record %s: %w", link, err)
	}
	r := &Recorder{file: os.NewFile(uintptr(fd), "packets"), keep: keep}
	if r.raw, err = r.file.SyscallConn(); err != nil {
		r.file.Close()
		return nil, fmt.Errorf("record %s: %w", link, err)
	}
	r.reading.Go(r.read)
	return r, nil
}

// packetSocket is bound to one link before it takes any packet: made with
// protocol 0 it takes none (packet(7)).
func packetSocket(index int) (_ int, err error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0, fmt.Errorf("packet socket: %w", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, recordBuffer); err != nil {
		return 0, fmt.Errorf("SO_RCVBUFFORCE: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
		return 0, fmt.Errorf("SO_TIMESTAMPNS: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: index}); err != nil {
		return 0, fmt.Errorf("bind: %w", err)
	}
	return fd, nil
}

// read takes packets until Stop, and then those that are still queued.
func (r *Recorder) read() {
	buf := make([]byte, maxFrame)
	oob := make([]byte, 256)
	for {
		var p *Packet
		var readErr error
		err := r.raw.Read(func(fd uintptr) bool {
			p, readErr = receive(int(fd), buf, oob)
			return readErr != unix.EAGAIN
		})
		if err == nil {
			err = readErr
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return // Stop takes the rest
		}
		if errors.Is(err, unix.ENETDOWN) {
			continue // the link was set down; it is told once
		}
		r.mu.Lock()
		if err != nil {
			r.err = err
			r.mu.Unlock()
			return
		}
		r.takeLocked(p)
		r.mu.Unlock()
	}
}

// takeLocked keeps p. r.mu is held.
func (r *Recorder) takeLocked(p *Packet) {
	if p != nil && (r.keep == nil || r.keep(p)) {
		r.packets = append(r.packets, p)
	}
}

func receive(fd int, buf, oob []byte) (*Packet, error) {
	n, oobn, _, from, err := unix.Recvmsg(fd, buf, oob, unix.MSG_DONTWAIT)
	if err != nil {
		return nil, err
	}
	p := &Packet{Data: append([]byte(nil), buf[:n]...), Time: time.Now()}
	if ll, ok := from.(*unix.SockaddrLinklayer); ok {
		p.Sent = ll.Pkttype == unix.PACKET_OUTGOING
	}
	if msgs, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil {
		for _, m := range msgs {
			if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= 16 {
				p.Time = time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
			}
		}
	}
	p.parse()
	return p, nil
}

// Packets are those seen so far, oldest first.
func (r *Recorder) Packets() []*Packet {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]*Packet(nil), r.packets...)
}

// Stop ends the recording, with every packet in it that passed before the
// call. It fails if the kernel dropped one: a proof by absence needs them all.
// Later calls return the same.
func (r *Recorder) Stop() ([]*Packet, error) {
	r.once.Do(r.stop)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.err != nil:
		return r.packets, fmt.Errorf("record packets: %w", r.err)
	case r.dropped > 0:
		return r.packets, fmt.Errorf("record packets: %d were dropped", r.dropped)
	}
	return r.packets, nil
}

func (r *Recorder) stop() {
	_ = r.file.SetReadDeadline(time.Unix(1, 0)) // wakes the reader
	r.reading.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	buf, oob := make([]byte, maxFrame), make([]byte, 256)
	err := r.raw.Control(func(fd uintptr) {
		for r.err == nil {
			p, err := receive(int(fd), buf, oob)
			if err != nil {
				break
			}
			r.takeLocked(p)
		}
		if stats, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			r.dropped = stats.Drops
		} else if r.err == nil {
			r.err = err
		}
	})
	r.err = errors.Join(r.err, err, r.file.Close())
}

// WritePcap writes packets in the classic format that tcpdump and Wireshark
// read, with nanoseconds.
func WritePcap(w io.Writer, packets []*Packet) error {
	head := binary.LittleEndian.AppendUint32(nil, 0xa1b23c4d)
	head = binary.LittleEndian.AppendUint16(head, 2)
	head = binary.LittleEndian.AppendUint16(head, 4)
	head = append(head, make([]byte, 8)...)
	head = binary.LittleEndian.AppendUint32(head, maxFrame)
	head = binary.LittleEndian.AppendUint32(head, 1) // Ethernet
	if _, err := w.Write(head); err != nil {
		return err
	}
	for _, p := range packets {
		rec := binary.LittleEndian.AppendUint32(nil, uint32(p.Time.Unix()))
		rec = binary.LittleEndian.AppendUint32(rec, uint32(p.Time.Nanosecond()))
		rec = binary.LittleEndian.AppendUint32(rec, uint32(len(p.Data)))
		rec = binary.LittleEndian.AppendUint32(rec, uint32(len(p.Data)))
		if _, err := w.Write(append(rec, p.Data...)); err != nil {
			return err
		}
	}
	return nil
}

// htons puts a number in network order where the kernel takes a raw field.
func htons(v uint16) uint16 { return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v)) }
