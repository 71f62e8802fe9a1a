// SPDX-License-Identifier: Apache-2.0

package podns

import (
	"strings"
	"testing"
)

const uid = "2c48913c-b29f-11e7-9350-020968147796"

func TestPodsAreKnownByTheirCgroups(t *testing.T) {
	under := strings.ReplaceAll(uid, "-", "_")
	const id = "9bca8d63d5fa610783847915bcff0ecac1273e5b4bed3f6fa1b07350e0135961"
	for _, tc := range []struct{ name, cgroup, want, err string }{
		{"cgroupfs", "0::/kubepods/burstable/pod" + uid + "/" + id + "\n", uid, ""},
		{"guaranteed", "0::/kubepods/pod" + uid + "/" + id, uid, ""},
		{"systemd", "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + under + ".slice/cri-containerd-" + id + ".scope\n", uid, ""},
		{"CRI-O", "0::/kubepods.slice/kubepods-pod" + under + ".slice/crio-" + id + ".scope/container", uid, ""},
		{"slice, runtime and container in one", "0::/kubepods-besteffort-pod" + under + ".slice:cri-containerd:" + id, uid, ""},
		{"kind", "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod" + under + ".slice/cri-containerd-" + id + ".scope", uid, ""},
		{"from inside a cgroup namespace", "0::/../../pod" + uid + "/" + id, uid, ""},
		{"version 1", "12:memory:/kubepods/pod" + uid + "/" + id + "\n1:name=systemd:/kubepods/pod" + uid + "/" + id + "\n0::/\n", uid, ""},
		{"a pod from a file", "0::/kubepods/pod" + strings.ReplaceAll(uid, "-", "") + "/" + id, strings.ReplaceAll(uid, "-", ""), ""},
		{"what a container makes itself", "0::/kubepods/pod" + uid + "/" + id + "/pod00000000-0000-0000-0000-000000000000/x", uid, ""},
		{"no pod", "0::/system.slice/ssh.service\n", "", ""},
		{"a name that only ends so", "0::/user.slice/tripod" + uid, "", ""},
		{"too short", "0::/kubepods/pod2c48913c-b29f-11e7-9350-02096814779/x", "", ""},
		{"upper case", "0::/kubepods/pod" + strings.ToUpper(uid) + "/x", "", ""},
		{"nothing", "", "", ""},
		{"two pods", "2:cpu:/kubepods/pod" + uid + "/x\n1:memory:/kubepods/pod00000000-0000-0000-0000-000000000000/x\n", "", "two pods"},
		{"no line", "kubepods", "", "is not hierarchy"},
		{"no path", "0::kubepods", "", "is not hierarchy"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := PodOf(tc.cgroup)
			if got != tc.want || (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%q, %v, want %q and %q", got, err, tc.want, tc.err)
			}
		})
	}
}

func TestNoPrefixOfACgroupIsAnotherPods(t *testing.T) {
	whole := "12:memory:/kubepods/burstable/pod" + uid + "/abc\n0::/kubepods.slice/kubepods-pod" + strings.ReplaceAll(uid, "-", "_") + ".slice/x\n"
	for n := range whole {
		if got, err := PodOf(whole[:n]); err == nil && got != "" && got != uid {
			t.Errorf("%d bytes are of %q", n, got)
		}
	}
}

func FuzzPodOf(f *testing.F) {
	f.Add("0::/kubepods/burstable/pod" + uid + "/x\n")
	f.Add("0::/kubepods-pod" + strings.ReplaceAll(uid, "-", "_") + ".slice:cri:x")
	f.Add("1:name=systemd:/\n0::/")
	f.Add("::\n")
	f.Fuzz(func(t *testing.T, cgroup string) {
		got, err := PodOf(cgroup)
		if err != nil && got != "" || got != "" && got != canonical(got) {
			t.Errorf("%q, %v", got, err)
		}
		if got != "" && !strings.Contains(strings.ReplaceAll(cgroup, "_", "-"), got) {
			t.Errorf("%q is not in it", got)
		}
	})
}

const aStat = "42 (a (b) c) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 777 9 10 18446744073709551615 1 1\n"

func TestTheStartOfAProcess(t *testing.T) {
	if got, err := startOf(aStat); got != 777 || err != nil {
		t.Errorf("%d, %v", got, err)
	}
	for n := range strings.Index(aStat, "777") {
		if got, err := startOf(aStat[:n]); err == nil {
			t.Errorf("%q begins at %d", aStat[:n], got)
		}
	}
}

func FuzzStartOf(f *testing.F) {
	f.Add(aStat)
	f.Add("1 () S")
	f.Fuzz(func(t *testing.T, stat string) {
		if got, err := startOf(stat); err != nil && got != 0 && !strings.Contains(err.Error(), "range") {
			t.Errorf("%d beside %v", got, err)
		}
	})
}
