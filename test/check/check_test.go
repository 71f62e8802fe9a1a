// SPDX-License-Identifier: Apache-2.0

package check

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/ztunnel-go/ztunnel/internal/netns"
	"github.com/ztunnel-go/ztunnel/test/leak"
	"github.com/ztunnel-go/ztunnel/test/privileged"
	"github.com/ztunnel-go/ztunnel/test/rig"
)

// ztunnel is the program under test, built once.
var ztunnel string

func TestMain(m *testing.M) {
	Main()
	os.Exit(rig.Run(m, &ztunnel))
}

// patience bounds whatever is waited for, on a machine under load.
const patience = 30 * time.Second

type found struct{ Check, Level, Text string }

// A machine is how the program is to find it.
type machine struct {
	steps []string
	env   []string
	attr  *syscallAttr
}

// check runs `ztunnel check --json` and returns what it found; problems and
// exit status have to fit.
func check(t *testing.T, m machine) []found {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	cmd := exec.Command(exe, slices.Concat([]string{"stage"}, m.steps, []string{"--", ztunnel, "check", "--json"})...)
	cmd.Env = append([]string{"FAKE_CA=true", "XDS_ADDRESS=", "PATH=" + os.Getenv("PATH")}, m.env...)
	cmd.SysProcAttr = m.attr
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || cmd.ProcessState.ExitCode() > 1 {
		t.Fatalf("%v: %s%s", err, stdout.String(), stderr.String())
	}
	var out struct {
		OK       bool
		Findings []found
	}
	if err := json.Unmarshal(stdout.Bytes(), &out); err != nil {
		t.Fatalf("%v: %s%s", err, stdout.String(), stderr.String())
	}
	problems := slices.ContainsFunc(out.Findings, func(f found) bool { return f.Level == "problem" })
	if status := cmd.ProcessState.ExitCode(); out.OK == problems || (status != 0) != problems {
		t.Errorf("ok is %v, and the exit status %d, with %+v", out.OK, status, out.Findings)
	}
	for _, f := range out.Findings {
		if f.Level != "ok" {
			told.Store(f.Text, true)
		}
	}
	return out.Findings
}

// told is what was said in the tests of this run that was not fine.
var told sync.Map

// has reports whether one of the findings is this, with all texts in it.
func has(all []found, check, level string, texts ...string) bool {
	return slices.ContainsFunc(all, func(f found) bool {
		for _, text := range texts {
			if !strings.Contains(f.Text, text) {
				return false
			}
		}
		return f.Check == check && f.Level == level
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// emptyCgroup is a cgroup of the test's own, below the root.
func emptyCgroup(t *testing.T) string {
	t.Helper()
	points, err := cgroup2Mounts()
	must(t, err)
	dir, err := os.MkdirTemp(points[0], "ztcheck-")
	must(t, err)
	t.Cleanup(func() {
		for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) { // a process takes a moment to be gone
			err := os.Remove(dir)
			if err == nil {
				return
			}
			if time.Now().After(end) {
				t.Error(err)
				return
			}
		}
	})
	return dir
}

// pinDir is a directory on the bpf file system.
func pinDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/sys/fs/bpf", "ztcheck-")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// program is one of somebody else: it lets every connect go on.
func program(t *testing.T, name string) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: name, Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	})
	must(t, err)
	t.Cleanup(func() { p.Close() })
	return p
}

// attached is a cgroup with a program that shares its hook.
func attached(t *testing.T, name string) (cgroup string) {
	t.Helper()
	cgroup = emptyCgroup(t)
	l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: ebpf.AttachCGroupInet4Connect, Program: program(t, name)})
	must(t, err)
	t.Cleanup(func() { l.Close() })
	return cgroup
}

func TestAGoodMachine(t *testing.T) {
	privileged.Need(t)
	leak.Check(t)
	all := check(t, machine{})
	for _, f := range all {
		if f.Level == "problem" {
			t.Errorf("%+v", f)
		}
	}
	for _, name := range []string{"environment", "capabilities", "kernel", "btf", "cgroup", "bpffs", "sysctl", "programs", "resolver", "descriptors"} {
		if !has(all, name, "ok") {
			t.Errorf("%s is not said to be fine: %+v", name, all)
		}
	}
	points, err := cgroup2Mounts()
	must(t, err)
	left, err := filepath.Glob(points[0] + "/ztunnel-check-*")
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
	out, err := exec.Command(ztunnel, "check").Output()
	if err != nil || !strings.HasSuffix(string(out), "No problem found.\n") {
		t.Errorf("for people: %v\n%s", err, out)
	}
}

// TestEachProblemIsToldOf makes each true, and the program find it.
func TestEachProblemIsToldOf(t *testing.T) {
	privileged.Need(t)
	leak.Check(t)
	for _, tc := range problems() {
		t.Run(tc.name, func(t *testing.T) {
			m := tc.make(t)
			all := check(t, m)
			if !has(all, tc.check, tc.level, tc.says...) {
				t.Errorf("no %s of %s says %q in %+v", tc.level, tc.check, tc.says, all)
			}
		})
	}
	everySentence(t)
}

// elsewhere are the sentences that this machine cannot be made to deserve.
var elsewhere = map[string]string{
	"%s lacks %v: %s": "an older kernel: make test-vm KERNEL=5.10",
	"%s lacks network namespace cookies (SO_NETNS_COOKIE, Linux 5.14): %s": "an older kernel: make test-vm KERNEL=5.10",
	"the programs cannot be used on %s: %v; please report it":              "a kernel with a verifier of another mind",
	"the process's capabilities cannot be read (%v): is /proc mounted?":    "capget(2) does not fail",
	"RLIMIT_NOFILE cannot be read: %v":                                     "getrlimit(2) does not fail",
	"%v: who else captures cannot be told":                                 "only who may not attach may not ask, either",
}

// everySentence holds that all that can be said was said.
func everySentence(t *testing.T) {
	t.Helper()
	for _, path := range []string{"../../dataplane/capture/preflight.go", "../../cmd/ztunnel/app/check.go"} {
		formats, err := Sentences(path)
		if err != nil || len(formats) == 0 {
			t.Fatalf("%s: %q, %v", path, formats, err)
		}
		for _, format := range formats {
			said := elsewhere[format] != "" || format == "%v" // an error in its own words
			told.Range(func(text, _ any) bool {
				said = said || Says(format, text.(string))
				return !said
			})
			if !said {
				t.Errorf("%s: nobody made the program say %q", path, format)
			}
		}
	}
}

func TestSentencesAreFound(t *testing.T) {
	for text, want := range map[string]bool{"a 1 b": true, "a 1 b c": false, "x a 1 b": false, "a  b": true} {
		if Says("a %d b", text) != want {
			t.Errorf("%q is taken for %v", text, !want)
		}
	}
	if _, err := Sentences("no.go"); err == nil {
		t.Error("a file that does not exist was read")
	}
}

func TestARunningProxyIsNoProblem(t *testing.T) {
	privileged.Need(t)
	leak.Check(t)
	ns, err := netns.New()
	must(t, err)
	defer ns.Close()
	must(t, ns.Do(func() error {
		return netlink.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "lo", Index: 1}})
	}))
	exe, err := os.Executable()
	must(t, err)
	dir := t.TempDir()
	env := []string{"FAKE_CA=true", "EMBEDDED_CA_DIR=" + dir, "XDS_ADDRESS=", "LOCAL_XDS={}", "CAPTURE=istio-cni", "INPOD_UDS=" + dir + "/none"}
	proxy := exec.Command(exe, "stage", "netns:"+ns.Path(), "--", ztunnel, "proxy")
	proxy.Env, proxy.Dir = env, dir
	must(t, proxy.Start())
	defer func() {
		proxy.Process.Kill()
		proxy.Wait()
	}()
	var all []found
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		all = check(t, machine{steps: []string{"netns:" + ns.Path()}, env: env})
		if has(all, "ports", "ok", "port 15000 (admin) is a running ztunnel's") {
			return
		}
	}
	t.Errorf("%+v", all)
}

func TestAnAgentIsSeenAndNotDisturbed(t *testing.T) {
	privileged.Need(t)
	leak.Check(t)
	dir, err := os.MkdirTemp("", "zt")
	must(t, err)
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "zds")
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	must(t, err)
	defer l.Close()
	if all := check(t, machine{env: []string{"INPOD_UDS=" + path}}); !has(all, "agent", "ok", path) {
		t.Errorf("%+v", all)
	}
	must(t, l.SetDeadline(time.Now()))
	if c, err := l.Accept(); err == nil {
		c.Close()
		t.Error("the agent has heard of it")
	}
}

func TestWhereIstioCaptureNothingElseIsWanted(t *testing.T) {
	privileged.Need(t)
	leak.Check(t)
	all := check(t, machine{env: []string{"CAPTURE=istio-cni"}, steps: []string{"tmpfs:/sys/fs/bpf", "unmount", "readonly:/proc/sys"}})
	for _, f := range all {
		if f.Level == "problem" {
			t.Errorf("%+v", f)
		}
	}
}

func TestArgumentsOfCheck(t *testing.T) {
	privileged.Need(t)
	for _, arg := range []string{"now", "--none"} {
		out, err := exec.Command(ztunnel, "check", arg).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), "Error: ") {
			t.Errorf("%s: %v\n%s", arg, err, out)
		}
	}
}

func itoa(n int) string { return strconv.Itoa(n) }
