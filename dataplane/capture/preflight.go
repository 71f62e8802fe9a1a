// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/bpf/redirect"
	"github.com/ztunnel-go/ztunnel/internal/netns"
)

// A Level says how bad a [Finding] is.
type Level string

// The levels.
const (
	Fine    Level = "ok"
	Warning Level = "warning" // capture works; something about it is not as one would think
	Problem Level = "problem" // pods would be refused, or would not be captured as they should
)

// A Finding is what is to be said of one thing that the proxy needs of its
// machine: what it is, where, and what to do about it, in a sentence.
type Finding struct {
	Check string `json:"check"` // kernel, capabilities, cgroup, ...
	Level Level  `json:"level"`
	Text  string `json:"text"`
}

// A preflight collects findings.
type preflight struct {
	cfg   Config
	found []Finding
}

func (p *preflight) say(check string, level Level, format string, args ...any) {
	p.found = append(p.found, Finding{check, level, fmt.Sprintf(format, args...)})
}

// sound says whether none of the named checks has found a problem.
func (p *preflight) sound(checks ...string) bool {
	for _, f := range p.found {
		for _, check := range checks {
			if f.Check == check && f.Level == Problem {
				return false
			}
		}
	}
	return true
}

// Preflight looks whether capture would work on this machine, as [Open] and
// [Node.Add] will find it, and goes on where they would stop. It changes
// nothing that outlives it, and may run beside a proxy. With mode istio-cni
// nothing but privileges is needed, so nothing else is looked at.
func Preflight(cfg Config) []Finding {
	p := &preflight{cfg: cfg.withDefaults()}
	p.privileges()
	if cfg.Mode == IstioCNI {
		p.say("kernel", Fine, "%s; with CAPTURE=istio-cni no program is loaded", kernel())
		return p.found
	}
	p.kernel()
	p.btf()
	where := p.cgroup()
	p.pins()
	p.settings()
	if p.sound("capabilities", "kernel", "cgroup") {
		p.programs(where)
	}
	return p.found
}

// kernel names what runs, for people: nothing is decided by it.
func kernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "a kernel that does not say its name"
	}
	return "Linux " + unix.ByteSliceToString(u.Release[:])
}

// insteadOfEBPF is what to do where the kernel cannot.
const insteadOfEBPF = "boot a newer kernel, or have istio-cni capture (CAPTURE=istio-cni)"

func (p *preflight) kernel() {
	missing, refused := redirect.Lacks()
	for _, err := range missing {
		p.say("kernel", Problem, "%s lacks %v: %s", kernel(), err, insteadOfEBPF)
	}
	if refused != nil && p.sound("capabilities") {
		p.say("kernel", Problem, "%s refuses to tell whether it has %v: a seccomp profile or kernel lockdown forbids bpf(2), so run the proxy privileged or with a profile that allows it",
			kernel(), refused)
	}
	if err := cookies(); errors.Is(err, unix.ENOPROTOOPT) {
		p.say("kernel", Problem, "%s lacks network namespace cookies (SO_NETNS_COOKIE, Linux 5.14): %s", kernel(), insteadOfEBPF)
	}
	if p.sound("kernel") && p.sound("capabilities") {
		p.say("kernel", Fine, "%s has every program type, helper and option that is needed", kernel())
	}
}

// cookies asks for the own namespace's, which needs no privilege.
func cookies() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	return err
}

func (p *preflight) btf() {
	const path = "/sys/kernel/btf/vmlinux"
	if _, err := os.Stat(path); err != nil {
		p.say("btf", Warning, "%s has no type information at %s (CONFIG_DEBUG_INFO_BTF): the proxy needs none, but bpftool and tracers will show little of what its programs do",
			kernel(), path)
		return
	}
	p.say("btf", Fine, "%s is there", path)
}

// privileges are asked of the process as it is: capabilities within a user
// namespace of its own are worth nothing here.
func (p *preflight) privileges() {
	const everyone = "         0          0 4294967295"
	ids, err := os.ReadFile("/proc/self/uid_map")
	if err == nil && strings.TrimRight(string(ids), "\n") != everyone {
		p.say("capabilities", Problem, "the process is in a user namespace (/proc/self/uid_map), where its capabilities hold for nothing of the node: run it without one (hostUsers: true, docker --userns=host)")
		return
	}
	held, err := effective()
	if err != nil {
		p.say("capabilities", Problem, "the process's capabilities cannot be read (%v): is /proc mounted?", err)
		return
	}
	has := func(bit uint) bool { return held&(1<<bit) != 0 }
	needs := []struct {
		bit        uint
		name, toDo string
	}{
		{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN", "enter the pods' network namespaces and load programs"},
		{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", "make rules and routes in pods, mark sockets and attach programs"},
		{unix.CAP_NET_RAW, "CAP_NET_RAW", "answer pods' DNS where an application of theirs has port 53, or the proxy may not bind it"},
	}
	lacking := false
	for _, n := range needs {
		if !has(n.bit) {
			lacking = true
			p.say("capabilities", Problem, "the process lacks %s, without which it cannot %s: add it to the container's securityContext, or run it as root", n.name, n.toDo)
		}
	}
	if !lacking {
		p.say("capabilities", Fine, "the process has CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_NET_RAW")
	}
}

// effective is the set of effective capabilities, as bits by number.
func effective() (uint64, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData // version 3 answers in two halves
	if err := unix.Capget(&header, &data[0]); err != nil {
		return 0, err
	}
	return uint64(data[0].Effective) | uint64(data[1].Effective)<<32, nil
}

// cgroup finds out where the programs would go; empty: nowhere.
func (p *preflight) cgroup() string {
	root, err := cgroupRoot(p.cfg.CgroupRoot)
	if err == nil {
		err = insideCgroup(root)
	}
	if err != nil {
		p.say("cgroup", Problem, "%v", err)
		return ""
	}
	if p.cfg.ProbeScope == ProbeKubelet {
		if _, err := kubeletCgroup(root); err != nil {
			p.say("cgroup", Problem, "%v", err)
		}
	}
	var st unix.Stat_t
	if p.cfg.CgroupRoot != "" && unix.Stat(root, &st) == nil && st.Ino != realRootInode {
		p.say("cgroup", Warning, "CGROUP_ROOT=%s is not the root of the cgroup2 hierarchy: pods outside of it are refused, so unset it unless that is meant", root)
	} else if p.sound("cgroup") {
		p.say("cgroup", Fine, "programs go to %s, the root of cgroup2", root)
	}
	return root
}

func (p *preflight) pins() {
	if err := redirect.CheckPinDir(p.cfg.PinDir); err != nil {
		p.say("bpffs", Problem, "%v, so capture would end with the proxy's container: run `mount -t bpf bpf /sys/fs/bpf` on the node, mount that into the container, and have BPF_PIN_DIR (%s) on it, root's alone",
			err, p.cfg.PinDir)
		return
	}
	others, err := redirect.OtherVersions(p.cfg.PinDir)
	if err != nil {
		p.say("bpffs", Problem, "%v", err)
		return
	}
	for _, dir := range others {
		p.say("bpffs", Problem, "%s holds the programs of another version of ztunnel, which would capture beside this one's: end that version and run its `ztunnel cleanup`, or this one's, before this one starts", dir)
	}
	if len(others) == 0 {
		p.say("bpffs", Fine, "%s can hold pins", p.cfg.PinDir)
	}
}

// settings tries out in a namespace of our own what is set in each pod's.
func (p *preflight) settings() {
	if !p.sound("capabilities") {
		return
	}
	ns, err := netns.New()
	if err != nil {
		p.say("sysctl", Problem, "no network namespace can be made or entered (%v): a seccomp profile forbids unshare(2) and setns(2), so run the proxy privileged or with a profile that allows them", err)
		return
	}
	defer ns.Close()
	r, err := newRouter(ns, true)
	if err == nil {
		defer r.close()
		err = r.setSysctls("1")
	}
	if err != nil {
		p.say("sysctl", Problem, "the proxy cannot %v: a container that is not privileged sees /proc/sys read-only and needs fsopen(2) of its seccomp profile, so allow that, mount /proc/sys writable, or make it privileged", err)
		return
	}
	p.say("sysctl", Fine, "what pods need under /proc/sys/net can be set")
}

// programs loads and attaches what capture consists of, and looks who else is
// there.
func (p *preflight) programs(cgroup string) {
	ns, err := netns.New()
	if err != nil {
		return // settings has said so
	}
	defer ns.Close()
	switch err := redirect.Try(cgroup, ns.Fd()); {
	case errors.Is(err, unix.EPERM) && strings.Contains(err.Error(), "attach"):
		p.say("programs", Problem, "cannot %v: a program that is attached to %s, or above it, tolerates no other; `bpftool cgroup tree` shows whose it is, and its owner must attach with BPF_F_ALLOW_MULTI", err, cgroup)
	case err != nil:
		p.say("programs", Problem, "the programs cannot be used on %s: %v; please report it", kernel(), err)
	default:
		p.say("programs", Fine, "every program loads and attaches")
	}
	others, err := redirect.Others(p.cfg.PinDir, cgroup)
	if err != nil {
		p.say("programs", Problem, "%v: who else captures cannot be told", err)
		return
	}
	for _, o := range others {
		p.other(o, cgroup)
	}
}

// other judges a program of somebody else. Those that change where connects go
// are known by name; what others do nobody can tell from outside.
func (p *preflight) other(o redirect.Foreign, cgroup string) {
	balancers := []struct{ prefix, whose, remedy string }{
		{"cil_sock", "Cilium's socket load balancer", "set socketLB.hostNamespaceOnly=true in Cilium"},
		{"sock4_connect", "Cilium's socket load balancer", "set socketLB.hostNamespaceOnly=true in Cilium"},
		{"sock6_connect", "Cilium's socket load balancer", "set socketLB.hostNamespaceOnly=true in Cilium"},
		{"calico_connect", "Calico's connect-time load balancer", "set bpfConnectTimeLoadBalancing=Disabled in Calico"},
	}
	for _, b := range balancers {
		if o.Connects && strings.HasPrefix(o.Name, b.prefix) {
			p.say("conflicts", Problem, "program %q (id %d) at %s of %s is %s, which turns services' addresses into pods' before the proxy sees them: %s",
				o.Name, o.ID, o.Hook, cgroup, b.whose, b.remedy)
			return
		}
	}
	if o.Twin && o.Hook != "connect4" {
		return // it is told of once
	}
	if o.Twin {
		p.say("conflicts", Problem, "program %q (id %d) at %s of %s is another ztunnel's, with another BPF_PIN_DIR than %s: end that one and run `ztunnel cleanup` with its environment",
			o.Name, o.ID, o.Hook, cgroup, p.cfg.PinDir)
		return
	}
	if o.Connects {
		p.say("conflicts", Warning, "program %q (id %d) of somebody else is at %s of %s and may change where pods' connections go: find its owner (`bpftool prog show id %d`) and whether it must see pods",
			o.Name, o.ID, o.Hook, cgroup, o.ID)
	}
}
