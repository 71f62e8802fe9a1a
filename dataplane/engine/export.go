// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"errors"
	"fmt"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/record"
	"github.com/ztunnel-go/ztunnel/dataplane/reactor"
)

// ErrBusy is a tunnel that cannot be exported at this moment: a request has no
// answer yet, or a stream is about to be joined with its socket.
var ErrBusy = errors.New("tunnel has requests under way")

// Settle is [Tunnel.Export] of a tunnel in which nothing is half-way: every
// stream is joined with a socket, and no request waits. Else the error is
// [ErrBusy], or [ErrImmovable] if waiting does not help.
func (t *Tunnel) Settle() (img *Image, fds []int, err error) {
	done := make(chan struct{})
	ran := t.do(func() {
		defer close(done)
		if err = t.unsettled(); err != nil {
			return
		}
		if img, fds = t.export(); img == nil {
			err = ErrImmovable
		}
	})
	if !ran {
		return nil, nil, ErrImmovable
	}
	<-done
	return img, fds, err
}

func (t *Tunnel) unsettled() error {
	if t.ended || t.closed {
		return ErrImmovable
	}
	t.places.mu.Lock()
	promised := t.client && t.places.used != len(t.streams)
	t.places.mu.Unlock()
	if promised || t.serving > 0 {
		return ErrBusy
	}
	for _, s := range t.streams {
		switch {
		case s.joint != nil:
		case s.waits != nil && len(s.waits.readers)+len(s.waits.writers) > 0: // a tunnel is within
			return ErrImmovable
		default:
			return ErrBusy
		}
	}
	return nil
}

// Hold has the tunnel read nothing, or read again, so that what is half-way can
// come to an end. It does not wait. A tunnel is not to be held for long: its
// peer's PINGs go unanswered.
func (t *Tunnel) Hold(hold bool) {
	t.do(func() {
		if t.ended || !t.src.Watching() {
			return
		}
		if hold {
			t.src.Want(t.src.Wanted() &^ reactor.Readable)
		} else {
			t.src.Want(t.src.Wanted() | reactor.Readable)
		}
	})
}

// Rekey changes both keys: ours now, with the records that leave next, and the
// peer's when it answers. Whoever has an image of the tunnel from before can
// open or seal nothing that comes after.
func (t *Tunnel) Rekey() {
	t.do(func() {
		if t.out == nil || t.ended || t.closed {
			return
		}
		t.renew = true
		if !t.box.stuck {
			t.box.newKey(t)
		}
	})
}

// Check says what makes an image with so many descriptors impossible to import,
// and changes nothing.
func (i *Image) Check(fds int) error {
	if err := i.check(fds); err != nil {
		return err
	}
	if i.Plain {
		return errors.New("a tunnel without TLS")
	}
	in, err := record.NewReceiver(i.In)
	if err != nil {
		return fmt.Errorf("in: %w", err)
	}
	in.Wipe()
	out, err := record.NewHalf(i.Out)
	if err != nil {
		return fmt.Errorf("out: %w", err)
	}
	out.Wipe()
	for _, s := range i.Streams {
		if s.Joint == nil && !s.Closed {
			return fmt.Errorf("stream %d is joined with nothing", s.ID)
		}
	}
	return nil
}

// Wipe forgets the image's secrets.
func (i *Image) Wipe() {
	i.In, i.Out = record.ReceiverState{}, record.State{}
}

// Open is the number of streams that are joined with sockets.
func (i *Image) Open() (n int) {
	for _, s := range i.Streams {
		if s.Joint != nil {
			n++
		}
	}
	return n
}
