// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"net"
	"os"
	"strings"
	"testing"
)

func TestSeesAGoroutineThatStays(t *testing.T) {
	before := snapshot(t)
	stop, started := make(chan struct{}), make(chan struct{})
	go func() { close(started); <-stop }()
	<-started
	leaked := strings.Join(snapshot(t).since(before), "\n")
	close(stop)
	if !strings.Contains(leaked, "TestSeesAGoroutineThatStays") {
		t.Errorf("the goroutine is missing in %q", leaked)
	}
}

func TestSeesADescriptorThatStays(t *testing.T) {
	startPoller(t)
	before := snapshot(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	leaked := strings.Join(snapshot(t).since(before), "\n")
	f.Close()
	l.Close()
	for _, want := range []string{"stream at " + l.Addr().String(), "/dev/null"} {
		if !strings.Contains(leaked, want) {
			t.Errorf("%q is missing in %q", want, leaked)
		}
	}
}

func TestIsContentWithATestThatCleansUp(t *testing.T) {
	Check(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
}

func TestCountsWhatWasOpenBefore(t *testing.T) {
	old, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	before := snapshot(t)
	again, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	old.Close() // replaced under another number: no leak
	if leaked := snapshot(t).since(before); len(leaked) != 0 {
		t.Errorf("a descriptor that was replaced counts as leaked: %q", leaked)
	}
	again.Close()
}
