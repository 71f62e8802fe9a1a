// SPDX-License-Identifier: Apache-2.0

package redirect

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTheEndOfAListenerIsTold closes listeners of applications, of the proxy,
// and one from before the enrolment. The first alone are told of.
func TestTheEndOfAListenerIsTold(t *testing.T) {
	n, _ := open(t)
	ns, cookie := namespace(t)
	p, err := n.Pod(cookie, ns.Fd(), false)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	told := make(chan uint64, 16)
	ctx, stop := context.WithCancel(t.Context())
	var reader sync.WaitGroup
	reader.Go(func() {
		if err := n.Unheard(ctx, func(cookie uint64) { told <- cookie }); err != nil {
			t.Error(err)
		}
	})
	defer reader.Wait()
	defer stop()

	listener := func(prepare func(fd int) error) int {
		t.Helper()
		fd := -1
		err := ns.Do(func() (err error) {
			if fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
				return err
			}
			return errors.Join(prepare(fd), unix.Listen(fd, 1))
		})
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	application := func(int) error { return nil }
	stranger := listener(application)
	_, err = p.Claim()
	if err := errors.Join(err, p.Enroll()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := unix.Close(listener(application)); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-told:
			if got != cookie {
				t.Errorf("told of %d, want %d", got, cookie)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("nobody tells")
		}
	}
	if err := errors.Join(unix.Close(listener(n.Own)), unix.Close(stranger)); err != nil {
		t.Fatal(err)
	}
	counts, err := n.Counts()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range counts {
		switch {
		case c.Name == "listener_gone" && c.Value != 2, c.Name == "listener_untold" && c.Value != 0:
			t.Errorf("%s: %d", c.Name, c.Value)
		}
	}
}
