// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/dataplane/capture"
	"github.com/ztunnel-go/ztunnel/dnsproxy"
)

// errFound ends a check that has found problems; it has told of them already.
var errFound = errors.New("there are problems")

// check is the command of that name: would a proxy with this environment work
// on this machine? It changes nothing, and may run beside one.
func check(args []string, env Env, stdout io.Writer) error {
	flags := flag.NewFlagSet("check", flag.ContinueOnError)
	flags.SetOutput(stdout)
	asJSON := flags.Bool("json", false, "print JSON")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("check takes no argument, not %q", flags.Arg(0))
	}
	found := preflight(env)
	problems := 0
	for _, f := range found {
		if f.Level == capture.Problem {
			problems++
		}
	}
	if err := printFindings(stdout, found, problems, *asJSON); err != nil {
		return err
	}
	if problems > 0 {
		return errFound
	}
	return nil
}

func printFindings(w io.Writer, found []capture.Finding, problems int, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(struct {
			OK       bool              `json:"ok"`
			Findings []capture.Finding `json:"findings"`
		}{problems == 0, found})
	}
	var b strings.Builder
	for _, f := range found {
		fmt.Fprintf(&b, "%-8s %-13s %s.\n", f.Level, f.Check, strings.TrimSuffix(f.Text, "."))
	}
	switch problems {
	case 0:
		b.WriteString("No problem found.\n")
	case 1:
		b.WriteString("1 problem found.\n")
	default:
		fmt.Fprintf(&b, "%d problems found.\n", problems)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// preflight is everything that a proxy with this environment will want.
func preflight(env Env) []capture.Finding {
	cfg, err := Load(env, []string{"proxy"})
	if err != nil {
		return []capture.Finding{finding("environment", capture.Problem,
			"%v: nothing else was looked at, since a proxy with this environment does not start", err)}
	}
	found := []capture.Finding{finding("environment", capture.Fine, "the variables and the files that they name can be read")}
	if err := cfg.unsupported(); err != nil {
		found[0] = finding("environment", capture.Problem, "%v: unset it", err)
	}
	if !cfg.Dedicated {
		if cc, err := cfg.capture(); err == nil { // else Load would have said so
			found = append(found, capture.Preflight(cc)...)
		}
		found = append(found, checkAgent(cfg.InpodUDS))
	}
	found = append(found, checkResolver(cfg.ResolvConf), checkDescriptors())
	return append(found, checkPorts(cfg)...)
}

func finding(check string, level capture.Level, format string, args ...any) capture.Finding {
	return capture.Finding{Check: check, Level: level, Text: fmt.Sprintf(format, args...)}
}

// checkAgent looks for the socket of whoever tells us the pods. It may come
// later. Asked for a stream, an agent's socket, which is none, refuses before
// the agent hears of it: it must not take us for another proxy.
func checkAgent(path string) capture.Finding {
	c, err := net.Dial("unix", path)
	switch {
	case errors.Is(err, unix.EPROTOTYPE):
		return finding("agent", capture.Fine, "an agent listens at %s", path)
	case err == nil:
		c.Close()
		return finding("agent", capture.Problem, "who listens at %s is no node agent, whose socket is of type SOCK_SEQPACKET: have INPOD_UDS name the agent's", path)
	}
	return finding("agent", capture.Warning,
		"nobody listens at %s (%v), so no pod is enrolled until somebody does: start istio-cni or zagent on this node and mount the socket's directory, or set INPOD_UDS",
		path, errors.Unwrap(err))
}

func checkResolver(path string) capture.Finding {
	text, err := readFile(path, maxResolvConf)
	if err == nil {
		_, err = dnsproxy.ParseResolvConf(bytes.NewReader(text))
	}
	if err != nil {
		return finding("resolver", capture.Problem, "%s cannot be used (%v), and without it the proxy does not start: mend it, or name another file in RESOLV_CONF", path, err)
	}
	return finding("resolver", capture.Fine, "%s names whom to ask", path)
}

// fewDescriptors is what a node of 250 pods has open before the first
// connection, and some.
const fewDescriptors = 16384

func checkDescriptors() capture.Finding {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return finding("descriptors", capture.Warning, "RLIMIT_NOFILE cannot be read: %v", err)
	}
	if limit.Max < fewDescriptors {
		return finding("descriptors", capture.Warning,
			"the process may have %d descriptors (RLIMIT_NOFILE), of which each connection takes one or two and each pod some ten: raise the hard limit to %d or more (LimitNOFILE=, docker --ulimit nofile)",
			limit.Max, fewDescriptors)
	}
	return finding("descriptors", capture.Fine, "the process may have %d", limit.Max)
}

// checkPorts tries the ports of the process's own namespace; those of pods are
// in the pods'.
func checkPorts(cfg *Config) []capture.Finding {
	type port struct {
		number uint16
		addr   netip.Addr
		what   string
	}
	loopback, wildcard := netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Unspecified()
	if !cfg.IPv6 {
		wildcard = netip.IPv4Unspecified()
	}
	ports := []port{{cfg.StatsPort, wildcard, "metrics"}, {cfg.ReadinessPort, wildcard, "readiness"}}
	if cfg.AdminSocket == "" {
		ports = append(ports, port{cfg.AdminPort, loopback, "admin"})
	}
	if cfg.Dedicated {
		ports = append(ports, port{PortOutbound, wildcard, "outbound"}, port{PortPlaintext, wildcard, "inbound plaintext"}, port{PortHBONE, wildcard, "HBONE"})
		if cfg.DNSProxy && cfg.DNSProxyAddr.Localhost {
			ports = append(ports, port{cfg.DNSProxyAddr.Port, loopback, "DNS"})
		}
	}
	var found []capture.Finding
	for _, p := range ports {
		if f, taken := checkPort(netip.AddrPortFrom(p.addr, p.number), p.what); taken {
			found = append(found, f)
		}
	}
	if len(found) == 0 {
		found = append(found, finding("ports", capture.Fine, "all ports are free"))
	}
	return found
}

func checkPort(addr netip.AddrPort, what string) (capture.Finding, bool) {
	l, err := net.Listen("tcp", addr.String())
	if err == nil {
		l.Close()
		return capture.Finding{}, false
	}
	if !errors.Is(err, unix.EADDRINUSE) {
		return finding("ports", capture.Problem, "port %d (%s) cannot be bound: %v", addr.Port(), what, err), true
	}
	who, same := owner(addr.Port())
	if same {
		return finding("ports", capture.Fine, "port %d (%s) is a running ztunnel's: %s", addr.Port(), what, who), true
	}
	return finding("ports", capture.Problem, "port %d (%s) is taken by %s in the proxy's network namespace: end that, have it use another port, or give the proxy a namespace of its own (hostNetwork: false)",
		addr.Port(), what, who), true
}

// owner names the process that listens on a port of this namespace, and says
// whether it is this program.
func owner(port uint16) (who string, same bool) {
	inodes := map[string]bool{}
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		text, err := os.ReadFile(table)
		if err != nil {
			continue
		}
		for _, line := range strings.Split(string(text), "\n") {
			f := strings.Fields(line) // sl local remote state ... inode is the tenth
			const listening = "0A"
			if len(f) > 9 && f[3] == listening && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", port)) {
				inodes["socket:["+f[9]+"]"] = true
			}
		}
	}
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return "somebody", false
	}
	for _, link := range links {
		to, err := os.Readlink(link)
		if err != nil || !inodes[to] {
			continue
		}
		pid, _, _ := strings.Cut(strings.TrimPrefix(link, "/proc/"), "/")
		name, err := os.ReadFile("/proc/" + pid + "/comm")
		if err != nil {
			continue
		}
		return fmt.Sprintf("%s (process %s)", strings.TrimSpace(string(name)), pid), isThisProgram(pid)
	}
	return "a process that is not to be seen from here", false
}

func isThisProgram(pid string) bool {
	if n, err := strconv.Atoi(pid); err != nil || n == os.Getpid() {
		return false
	}
	own, err1 := os.Stat("/proc/self/exe")
	other, err2 := os.Stat("/proc/" + pid + "/exe")
	return err1 == nil && err2 == nil && os.SameFile(own, other)
}
