// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	pb "github.com/ztunnel-go/ztunnel/dataplane/handover/handoverpb"
)

const (
	// maxPacket is the longest packet: what is long goes in a memory file.
	maxPacket = 64 << 10
	// maxRights is how many descriptors go with one packet; the kernel takes 253.
	maxRights = 250
	// maxImage bounds the image of a lot: 64 tunnels whose queues are full.
	maxImage = 1 << 30
	// maxLotDescriptors bounds those of a lot.
	maxLotDescriptors = 1 << 16
)

// A link is the conversation's socket: SOCK_SEQPACKET, one message in each
// packet.
type link struct {
	conn *net.UnixConn

	sending sync.Mutex // several goroutines send
}

// send sends one message. An error says nothing of whether the peer has it, and
// nothing of what the peer has sent.
func (l *link) send(m *pb.Message, fds []int, limit time.Duration) error {
	b, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	if len(b) > maxPacket || len(b) == 0 {
		return fmt.Errorf("a message of %d bytes", len(b))
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	l.sending.Lock()
	defer l.sending.Unlock()
	if err := l.conn.SetWriteDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	_, _, err = l.conn.WriteMsgUnix(b, oob, nil)
	return err
}

// A packet is a message and what came with it.
type packet struct {
	*pb.Message
	fds []int
}

func (p packet) close() { closeAll(p.fds) }

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// receive waits for the next message until the deadline; zero is none. io.EOF
// says that nothing will ever come any more. A peer that died with messages
// unread shows as ECONNRESET before what it had said: that is read over.
func (l *link) receive(deadline time.Time) (packet, error) {
	if err := l.conn.SetReadDeadline(deadline); err != nil {
		return packet{}, err
	}
	b, oob := make([]byte, maxPacket+1), make([]byte, unix.CmsgSpace(4*(maxRights+3)))
	n, oobn, flags, _, err := l.conn.ReadMsgUnix(b, oob)
	for errors.Is(err, unix.ECONNRESET) {
		n, oobn, flags, _, err = l.conn.ReadMsgUnix(b, oob)
	}
	fds, rerr := rights(oob[:max(oobn, 0)])
	switch {
	case err == nil && n == 0 && oobn == 0:
		err = io.EOF
	case err != nil:
	case rerr != nil:
		err = rerr
	case flags&unix.MSG_CTRUNC != 0:
		err = errors.New("descriptors were lost: the limit of open files is too low")
	case flags&unix.MSG_TRUNC != 0 || n > maxPacket:
		err = errors.New("a packet too long")
	}
	m := &pb.Message{}
	if err == nil {
		err = proto.Unmarshal(b[:n], m)
	}
	if err != nil {
		closeAll(fds)
		return packet{}, err
	}
	return packet{m, fds}, nil
}

func rights(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var fds []int
	for _, m := range messages {
		got, err := unix.ParseUnixRights(&m)
		if err != nil {
			closeAll(fds)
			return nil, err
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

// isTimeout reports whether err is a deadline that has passed.
func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// seals keep a memory file as it is.
const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE

// memoryFile is b in a file that has no name, is on no disk and cannot be
// changed.
func memoryFile(b []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("handover", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate("handover", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "handover")
	if _, err := f.Write(b); err != nil {
		f.Close()
		return nil, err
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		f.Close()
		return nil, os.NewSyscallError("fcntl F_ADD_SEALS", err)
	}
	return f, nil
}

// readMemoryFile reads what [memoryFile] has made of a lot, and closes it. The
// caller wipes what it returns.
func readMemoryFile(fd int, lot *pb.Lot) ([]byte, error) {
	f := os.NewFile(uintptr(fd), "handover")
	defer f.Close()
	have, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if err != nil || have&seals != seals {
		return nil, errors.New("the image is not a sealed memory file")
	}
	if lot.Length > maxImage {
		return nil, fmt.Errorf("an image of %d bytes", lot.Length)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() != int64(lot.Length) {
		return nil, fmt.Errorf("an image of %d bytes that was to have %d", info.Size(), lot.Length)
	}
	b := make([]byte, lot.Length)
	if _, err := f.ReadAt(b, 0); err != nil && !(len(b) == 0 && errors.Is(err, io.EOF)) {
		clear(b)
		return nil, err
	}
	if sum := sha256.Sum256(b); !bytes.Equal(sum[:], lot.Sha256) {
		clear(b)
		return nil, errors.New("the image is not what was sent")
	}
	return b, nil
}

// growDescriptors makes the table of descriptors large enough for n more, while
// nobody waits: in a process with threads each growth waits for the kernel's
// readers, for some 10 ms.
func growDescriptors(n int) {
	const spare, most = 512, 1 << 20
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return
	}
	at := min(n+n/4+spare, most, int(min(limit.Cur, most))-1)
	if fd, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, at); err == nil {
		unix.Close(fd)
	}
}
