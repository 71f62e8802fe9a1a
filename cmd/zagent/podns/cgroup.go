// SPDX-License-Identifier: Apache-2.0

package podns

import (
	"fmt"
	"strings"
)

// PodOf finds the uid of the pod that a process belongs to in its
// /proc/<pid>/cgroup (cgroups(7)): lines of hierarchy:controllers:path. Kubelet
// names a pod's cgroup pod<uid>, or with systemd something-pod<uid>.slice with
// _ for -; below it a runtime puts containers, and a container what it likes,
// so the first uid of a path counts. No uid is the empty string: the process is
// of no pod. It is an error if a line is no such line, or if hierarchies
// disagree.
func PodOf(cgroup string) (string, error) {
	var found string
	for line := range strings.Lines(cgroup) {
		line = strings.TrimSuffix(line, "\n")
		parts := strings.SplitN(line, ":", 3)
		if len(parts) != 3 || !strings.HasPrefix(parts[2], "/") {
			return "", fmt.Errorf("cgroup line %q is not hierarchy:controllers:/path", line)
		}
		uid := podIn(parts[2])
		switch {
		case uid == "":
		case found == "":
			found = uid
		case found != uid:
			return "", fmt.Errorf("cgroups speak of two pods, %s and %s", found, uid)
		}
	}
	return found, nil
}

// podIn is the first uid in a path.
func podIn(path string) string {
	for part := range strings.SplitSeq(path, "/") {
		// cri-o and containerd may name container and pod in one: slice:runtime:container.
		part, _, _ = strings.Cut(part, ":")
		part = strings.TrimSuffix(part, ".slice")
		at := strings.LastIndex(part, "pod")
		if at < 0 || at > 0 && part[at-1] != '-' {
			continue
		}
		if uid := canonical(part[at+len("pod"):]); uid != "" {
			return uid
		}
	}
	return ""
}

// canonical is s as the API writes uids; empty if it is none. Pods that
// kubelet runs from files have 32 digits and no dashes.
func canonical(s string) string {
	s = strings.ReplaceAll(s, "_", "-")
	digits := 0
	for i, c := range []byte(s) {
		switch {
		case c >= '0' && c <= '9' || c >= 'a' && c <= 'f':
			digits++
		case c == '-' && (i == 8 || i == 13 || i == 18 || i == 23):
		default:
			return ""
		}
	}
	if digits != 32 || len(s) != 32 && len(s) != 36 {
		return ""
	}
	return s
}
