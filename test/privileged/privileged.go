// SPDX-License-Identifier: Apache-2.0

// Package privileged says whether a test may do what only root may, and what
// becomes of one for which the machine lacks something.
//
// A skipped test looks like one that passed. So where everything must run, in
// CI, ZTUNNEL_TESTS=all turns a skip into a failure. For tests only.
package privileged

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Need skips t, with the reason, unless the process is root with the
// capabilities that namespaces, transparent sockets and BPF programs take.
// With ZTUNNEL_TESTS=all it fails t instead.
func Need(t testing.TB) {
	t.Helper()
	if err := Missing(); err != nil {
		Lacking(t, fmt.Errorf("needs root: %w", err))
	}
}

// Lacking ends t because of something that this machine does not have, a
// program say: it is skipped, or fails with ZTUNNEL_TESTS=all.
func Lacking(t testing.TB, what error) {
	t.Helper()
	if os.Getenv("ZTUNNEL_TESTS") == "all" {
		t.Fatalf("ZTUNNEL_TESTS=all, but: %v", what)
	}
	t.Skip(what)
}

// Missing says what the process lacks, or nil. Root alone does not do: in a
// container uid 0 often comes without these capabilities.
func Missing() error {
	if uid := os.Geteuid(); uid != 0 {
		return fmt.Errorf("the effective uid is %d and not 0", uid)
	}
	held, err := effective()
	if err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	if lacking := lacking(held); len(lacking) > 0 {
		return errors.New("the process lacks " + strings.Join(lacking, ", "))
	}
	return nil
}

// lacking names those of the needed capabilities that are not in held.
func lacking(held uint64) []string {
	var names []string
	for _, c := range []struct {
		bit  uint
		name string
	}{
		{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN"},
		{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"},
		{unix.CAP_NET_RAW, "CAP_NET_RAW"},
		{unix.CAP_BPF, "CAP_BPF"},
	} {
		if held&(1<<c.bit) == 0 {
			names = append(names, c.name)
		}
	}
	return names
}

// effective is the set of effective capabilities of the calling thread, as
// bits by number (capabilities(7)).
func effective() (uint64, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData // version 3 answers in two 32-bit halves
	if err := unix.Capget(&header, &data[0]); err != nil {
		return 0, err
	}
	return uint64(data[0].Effective) | uint64(data[1].Effective)<<32, nil
}
