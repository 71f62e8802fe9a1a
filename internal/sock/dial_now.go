// SPDX-License-Identifier: Apache-2.0

package sock

import (
	"cmp"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrLater says that a connection cannot be begun without waiting.
var ErrLater = errors.New("no socket is at hand")

// A Dialing is a TCP connection that is being made, for event loops: nothing
// here waits.
type Dialing struct {
	FD   int  // non-blocking, not known to the runtime; whose it is is for the caller to say
	Done bool // it is connected
	how  Dial
}

// DialNow begins to connect, or says [ErrLater] if that would take a visit to
// the namespace. Within one machine a connection is often made at once. Its
// other errors are as of [Factory.DialTCP]; Timeout is the caller's to watch.
func (f *Factory) DialNow(d Dial) (*Dialing, error) {
	fam := family(d.Dst.Addr())
	if d.Dst.Addr().Zone() != "" {
		return nil, ErrLater // which is a question to the kernel
	}
	to, err := sockaddr(fam, d.Dst)
	if err != nil {
		return nil, opError("tcp", d, err)
	}
	fd, err := f.at(fam)
	if err != nil {
		return nil, err
	}
	if err := prepare(fd, fam, d); err != nil {
		unix.Close(fd)
		return nil, opError("tcp", d, err)
	}
	err = unix.Connect(fd, to)
	if err == unix.EINPROGRESS {
		// Within the machine the answer is there by now, and only another call
		// tells. While there is none it says EALREADY.
		err = unix.Connect(fd, to)
	}
	if err != nil && err != unix.EALREADY {
		unix.Close(fd)
		return nil, opError("tcp", d, os.NewSyscallError("connect", err))
	}
	return &Dialing{FD: fd, Done: err == nil, how: d}, nil
}

// at is a socket that needs no visit.
func (f *Factory) at(fam int) (int, error) {
	if f.NS != nil {
		if f.Stock == nil {
			return -1, ErrLater
		}
		if fd := f.Stock.take(fam); fd >= 0 {
			return fd, nil
		}
		return -1, ErrLater
	}
	fd, err := unix.Socket(fam, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, ErrLater // who may wait finds out what it is
	}
	if err := f.furnish(fd); err != nil {
		unix.Close(fd)
		return -1, ErrLater
	}
	return fd, nil
}

// Check asks, once the descriptor is writable, what became of it. On error
// the descriptor is still open.
func (d *Dialing) Check() (done bool, err error) {
	done, err = connected(d.FD)
	if err != nil {
		return true, opError("tcp", d.how, err)
	}
	return done, nil
}

// Patience is how long it may take.
func (d *Dialing) Patience() time.Duration { return cmp.Or(d.how.Timeout, defaultDialTimeout) }

// Close gives it up.
func (d *Dialing) Close() { unix.Close(d.FD) }

// Late is the error of a connection that took too long.
func (d *Dialing) Late() error { return opError("tcp", d.how, os.ErrDeadlineExceeded) }
