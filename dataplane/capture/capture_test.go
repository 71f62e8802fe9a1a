// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestModesAndScopes(t *testing.T) {
	for s, want := range map[string]Mode{"": Auto, "auto": Auto, "ebpf": EBPF, "istio-cni": IstioCNI} {
		got, err := ParseMode(s)
		if err != nil || got != want || (s != "" && got.String() != s) {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
	if _, err := ParseMode("none"); err == nil {
		t.Error("none is a mode")
	}
	for s, want := range map[string]ProbeScope{"": ProbeHost, "host": ProbeHost, "kubelet": ProbeKubelet} {
		if got, err := ParseProbeScope(s); err != nil || got != want {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
	if _, err := ParseProbeScope("all"); err == nil {
		t.Error("all is a scope")
	}
}

func TestRolesHaveTheirPorts(t *testing.T) {
	for role, port := range map[Role]uint16{Outbound: 15001, Plaintext: 15006, HBONE: 15008} {
		if role.Port() != port {
			t.Errorf("%v: %d", role, role.Port())
		}
	}
}

func TestTheCgroupRootIsTheRealOne(t *testing.T) {
	root, err := cgroupRoot("")
	if err != nil { // a container that does not show it
		if !strings.Contains(err.Error(), "set CGROUP_ROOT") {
			t.Errorf("no root, and no way out: %v", err)
		}
		return
	}
	var st unix.Stat_t
	if err := unix.Stat(root, &st); err != nil || st.Ino != realRootInode {
		t.Errorf("%s has inode %d, %v", root, st.Ino, err)
	}
	if _, err := cgroupRoot(t.TempDir()); err == nil {
		t.Error("a directory that is no cgroup was taken")
	}
	if got, err := cgroupRoot(root + "/"); err != nil || got != root {
		t.Errorf("explicit root: %s, %v", got, err)
	}
}
