// SPDX-License-Identifier: Apache-2.0

package check

import (
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/internal/netns"
)

type syscallAttr = syscall.SysProcAttr

// A problem is how to make it true, and what has to be said then.
type problem struct {
	name         string
	make         func(t *testing.T) machine
	check, level string
	says         []string
}

// worse is a machine on which some steps were made.
func worse(steps ...string) func(*testing.T) machine {
	return func(*testing.T) machine { return machine{steps: steps} }
}

// given are variables as they are given.
func given(env ...string) func(*testing.T) machine {
	return func(*testing.T) machine { return machine{env: env} }
}

// in runs the program in a cgroup that it is to attach to.
func in(cgroup string) machine {
	return machine{steps: []string{"cgroup:" + cgroup}, env: []string{"CGROUP_ROOT=" + cgroup}}
}

func problems() []problem {
	return append(ofTheNode(), ofOthers()...)
}

func ofTheNode() []problem {
	return []problem{
		{"a capability is dropped", worse("drop:" + itoa(unix.CAP_NET_ADMIN)), "capabilities", "problem", []string{"CAP_NET_ADMIN"}},
		{"the other capability is dropped", worse("drop:" + itoa(unix.CAP_SYS_ADMIN)), "capabilities", "problem", []string{"CAP_SYS_ADMIN"}},
		{"raw sockets are not allowed", worse("drop:" + itoa(unix.CAP_NET_RAW)), "capabilities", "problem", []string{"CAP_NET_RAW"}},
		{"a user namespace", func(*testing.T) machine {
			return machine{attr: &syscall.SysProcAttr{
				Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
				UidMappings: []syscall.SysProcIDMap{{Size: 1}}, GidMappings: []syscall.SysProcIDMap{{Size: 1}},
			}}
		}, "capabilities", "problem", []string{"user namespace"}},
		{"bpf is forbidden", worse("forbid:" + itoa(unix.SYS_BPF)), "kernel", "problem", []string{"seccomp", "bpf(2)"}},
		{"unshare is forbidden", worse("forbid:" + itoa(unix.SYS_UNSHARE)), "sysctl", "problem", []string{"unshare(2)"}},
		{"no type information", worse("tmpfs:/sys/kernel/btf"), "btf", "warning", []string{"/sys/kernel/btf/vmlinux"}},
		{"no cgroup2", worse("unmount"), "cgroup", "problem", []string{"no cgroup2 hierarchy is mounted", "mount the host's /sys/fs/cgroup"}},
		{"a cgroup namespace", func(t *testing.T) machine {
			return machine{steps: []string{"cgroup:" + emptyCgroup(t), "cgroupns"}}
		}, "cgroup", "problem", []string{"does not begin at its real root", "mount the host's /sys/fs/cgroup"}},
		{"CGROUP_ROOT is none", given("CGROUP_ROOT=/tmp"), "cgroup", "problem", []string{"CGROUP_ROOT /tmp is not a directory of a cgroup2 hierarchy"}},
		{"CGROUP_ROOT is elsewhere", func(t *testing.T) machine {
			return machine{env: []string{"CGROUP_ROOT=" + emptyCgroup(t)}}
		}, "cgroup", "problem", []string{"is not inside CGROUP_ROOT"}},
		{"CGROUP_ROOT is not the root", func(t *testing.T) machine { return in(emptyCgroup(t)) },
			"cgroup", "warning", []string{"is not the root of the cgroup2 hierarchy"}},
		{"no kubelet", func(*testing.T) machine {
			return machine{env: []string{"PROBE_SCOPE=kubelet"}, steps: []string{"proc"}, attr: &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}}
		}, "cgroup", "problem", []string{"no kubelet"}},
		{"a tmpfs over bpffs", worse("tmpfs:/sys/fs/bpf"), "bpffs", "problem", []string{"/sys/fs/bpf is on a tmpfs and not on a bpf file system", "mount -t bpf"}},
		{"bpffs is read-only", worse("readonly:/sys/fs/bpf"), "bpffs", "problem", []string{"/sys/fs/bpf is mounted read-only"}},
		{"pins on a disk", given("BPF_PIN_DIR=/var/tmp/zt"), "bpffs", "problem", []string{"/var/tmp", "not on a bpf file system"}},
		{"pins of another user", func(t *testing.T) machine {
			dir := pinDir(t)
			must(t, os.Chown(dir, 65534, 65534))
			return machine{env: []string{"BPF_PIN_DIR=" + dir}}
		}, "bpffs", "problem", []string{"belongs to user 65534"}},
		{"/proc/sys is read-only", worse("readonly:/proc/sys", "forbid:"+itoa(unix.SYS_FSOPEN)), "sysctl", "problem", []string{"tcp_fwmark_accept", "fsopen(2)"}},
		{"few descriptors", worse("files:1024"), "descriptors", "warning", []string{"may have 1024"}},
		{"no resolv.conf", given("RESOLV_CONF=/nonexistent"), "resolver", "problem", []string{"/nonexistent"}},
		{"a variable is wrong", given("IPV6_ENABLED=no"), "environment", "problem", []string{"IPV6_ENABLED=no"}},
		{"a variable is not supported", given("ENABLE_PROXY=false"), "environment", "problem", []string{"ENABLE_PROXY=false"}},
	}
}

func ofOthers() []problem {
	return []problem{
		{"pins of another version", func(t *testing.T) machine {
			dir := pinDir(t)
			must(t, os.Mkdir(filepath.Join(dir, "v1"), 0o700))
			return machine{env: []string{"BPF_PIN_DIR=" + dir}}
		}, "bpffs", "problem", []string{"/v1 holds the programs of another version", "ztunnel cleanup"}},
		{"a program that tolerates no other", func(t *testing.T) machine {
			cgroup := emptyCgroup(t)
			p := program(t, "lonely")
			dir, err := os.Open(cgroup)
			must(t, err)
			t.Cleanup(func() { dir.Close() })
			must(t, link.RawAttachProgram(link.RawAttachProgramOptions{Target: int(dir.Fd()), Program: p, Attach: ebpf.AttachCGroupInet4Connect}))
			t.Cleanup(func() {
				must(t, link.RawDetachProgram(link.RawDetachProgramOptions{Target: int(dir.Fd()), Program: p, Attach: ebpf.AttachCGroupInet4Connect}))
			})
			return in(cgroup)
		}, "programs", "problem", []string{"connect4", "tolerates no other", "bpftool cgroup tree"}},
		{"Cilium's socket load balancer", func(t *testing.T) machine { return in(attached(t, "cil_sock4_conne")) },
			"conflicts", "problem", []string{`"cil_sock4_conne"`, "connect4", "socketLB.hostNamespaceOnly=true"}},
		{"Calico's", func(t *testing.T) machine { return in(attached(t, "calico_connect_")) },
			"conflicts", "problem", []string{"bpfConnectTimeLoadBalancing=Disabled"}},
		{"a program of somebody", func(t *testing.T) machine { return in(attached(t, "somebody")) },
			"conflicts", "warning", []string{`"somebody"`, "bpftool prog show id"}},
		{"another ztunnel", func(t *testing.T) machine { return in(attached(t, "connect4")) },
			"conflicts", "problem", []string{"another ztunnel's"}},
		{"a port is taken", func(t *testing.T) machine {
			ns, err := netns.New()
			must(t, err)
			t.Cleanup(func() { ns.Close() })
			must(t, ns.Do(func() error {
				l, err := net.Listen("tcp", ":15020")
				if err == nil {
					t.Cleanup(func() { l.Close() })
				}
				return err
			}))
			return machine{steps: []string{"netns:" + ns.Path()}}
		}, "ports", "problem", []string{"port 15020 (metrics) is taken by check.test (process " + itoa(os.Getpid()) + ")"}},
		{"a port may not be bound", func(t *testing.T) machine {
			return machine{env: []string{`PROXY_CONFIG={"proxyMetadata":{},"statsPort":80}`}, steps: []string{"drop:" + itoa(unix.CAP_NET_BIND_SERVICE)}}
		}, "ports", "problem", []string{"port 80 (metrics) cannot be bound"}},
		{"nobody is the agent", given("INPOD_UDS=/nonexistent"), "agent", "warning", []string{"nobody listens at /nonexistent"}},
		{"somebody else is the agent", func(t *testing.T) machine {
			dir, err := os.MkdirTemp("", "zt")
			must(t, err)
			t.Cleanup(func() { os.RemoveAll(dir) })
			l, err := net.Listen("unix", filepath.Join(dir, "s"))
			must(t, err)
			t.Cleanup(func() { l.Close() })
			return machine{env: []string{"INPOD_UDS=" + filepath.Join(dir, "s")}}
		}, "agent", "problem", []string{"is no node agent"}},
	}
}
