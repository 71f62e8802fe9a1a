// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"os"
	"testing"
)

func TestFromFileRefusesWhatIsNoNamespace(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := FromFile(f); err == nil {
		t.Error("/dev/null was taken for a network namespace")
	}
	if err := f.Close(); err == nil {
		t.Error("the refused descriptor was left open")
	}
}

func TestDoHandsBackTheError(t *testing.T) {
	ns, err := Current()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if os.Geteuid() != 0 {
		// Even setns to one's own namespace wants CAP_SYS_ADMIN.
		if err := ns.Do(func() error { return nil }); err == nil {
			t.Error("entered a namespace without privilege")
		}
		return
	}
	want := errors.New("from inside")
	if err := ns.Do(func() error { return want }); !errors.Is(err, want) {
		t.Errorf("Do = %v", err)
	}
}

func TestDoAfterCloseFails(t *testing.T) {
	ns, err := Current()
	if err != nil {
		t.Fatal(err)
	}
	ns.Close()
	if err := ns.Do(func() error { return nil }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Do = %v", err)
	}
}
