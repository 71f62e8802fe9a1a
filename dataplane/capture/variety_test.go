// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/privileged"
)

func TestPodsOfOneFamilyAndStrictReversePaths(t *testing.T) {
	for name, tt := range map[string]struct {
		lab    netlab.Config
		pod    netlab.PodConfig
		v4, v6 bool
	}{
		"rp_filter 1": {lab: netlab.Config{RPFilter: 1}, v4: true, v6: true},
		"IPv4 only":   {lab: netlab.Config{NoIPv6: true}, v4: true},
		"IPv6 only":   {pod: netlab.PodConfig{NoIPv4: true}, v6: true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRigOn(t, tt.lab)
			pod, err := r.host.Pod("a", tt.pod)
			must(t, err)
			other, err := r.host.Pod("b", tt.pod)
			must(t, err)
			app(t, pod.Host, ":8080")
			r.capture(pod)
			if tt.v4 {
				got, err := ask(pod.Host, "203.0.113.9:443", "x")
				wants(t, "outbound", got, err, "outbound dst=203.0.113.9:443")
				got, err = ask(other.Host, pod.Addr(8080).String(), "x")
				wants(t, "inbound", got, err, "inbound plaintext")
			}
			if tt.v6 {
				got, err := ask(pod.Host, "[2001:db8:9::9]:443", "x")
				wants(t, "outbound v6", got, err, "outbound dst=[2001:db8:9::9]:443")
				got, err = ask(other.Host, pod.Addr6(8080).String(), "x")
				wants(t, "inbound v6", got, err, "inbound plaintext")
			}
		})
	}
}

func TestWithoutDNSPort53IsLikeAnyOther(t *testing.T) {
	r := newRig(t, func(c *Config) { c.DNS = false })
	pod, other := r.pod("a"), r.pod("b")
	server, err := other.ListenPacket("udp", other.Addr(53).String())
	must(t, err)
	defer server.Close()
	r.capture(pod)
	got, err := ask(pod.Host, "10.96.0.10:53", "x")
	wants(t, "TCP", got, err, "outbound dst=10.96.0.10:53")
	c, err := pod.Dial(context.Background(), "udp", other.Addr(53).String())
	must(t, err)
	defer c.Close()
	c.Write([]byte("q"))
	server.SetDeadline(time.Now().Add(3 * time.Second))
	if _, _, err := server.ReadFrom(make([]byte, 10)); err != nil {
		t.Errorf("UDP: %v", err)
	}
}

func TestWithoutSpoofingTheProxyIsTheClient(t *testing.T) {
	r := newRig(t, func(c *Config) { c.SpoofSource = false })
	pod, other := r.pod("a"), r.pod("b")
	app(t, pod.Host, "[::]:8080")
	r.capture(pod)
	got, err := ask(other.Host, pod.Addr(8080).String(), "x")
	wants(t, "inbound", got, err, fmt.Sprintf("inbound plaintext dst=%v peer=%v\napp from=%v\nx", pod.Addr(8080), other.IPv4, pod.IPv4))
}

func TestMarksThatLeadBackAreRefused(t *testing.T) {
	for _, mark := range []uint32{0x1000, 0x111, 0x1539, 0x5111} {
		n, err := Open(context.Background(), Config{Mode: EBPF, Mark: mark}, slog.New(slog.DiscardHandler))
		if err == nil {
			n.Close()
			t.Errorf("%#x is taken", mark)
		}
	}
}

// kubelet is a process of that name in a cgroup of its own, in the host's
// namespace, that connects when it is told to, and prints the first line.
func kubelet(t *testing.T, r *netlab.Node, cgroup, addr string) (probe func() string) {
	t.Helper()
	bash, err := os.ReadFile("/bin/bash")
	if err != nil {
		privileged.Lacking(t, fmt.Errorf("bash plays kubelet: %w", err))
	}
	path := filepath.Join(t.TempDir(), "kubelet")
	must(t, os.WriteFile(path, bash, 0o755))
	must(t, os.Mkdir(cgroup, 0o755))
	host, port, _ := strings.Cut(addr, " ")
	cmd := exec.Command(path, "-c", fmt.Sprintf(
		`echo $$ > %s/cgroup.procs; echo up; while read go; do exec 3<>/dev/tcp/%s/%s; read -t 3 line <&3; echo "$line"; exec 3>&-; done`,
		cgroup, host, port))
	stdin, err := cmd.StdinPipe()
	must(t, err)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, r.Start(cmd))
	t.Cleanup(func() {
		stdin.Close()
		cmd.Wait()
		os.Remove(cgroup)
	})
	lines := bufio.NewReader(stdout)
	if up, err := lines.ReadString('\n'); err != nil || up != "up\n" {
		t.Fatalf("%q, %v", up, err)
	}
	return func() string {
		io.WriteString(stdin, "go\n")
		line, err := lines.ReadString('\n')
		must(t, err)
		return line
	}
}

func TestWithProbeScopeKubeletOnlyKubeletPasses(t *testing.T) {
	r := newRig(t)
	pod := r.pod("a")
	app(t, pod.Host, "[::]:8080")
	probe := kubelet(t, r.host, filepath.Join(r.lab.CgroupRoot(), "kubelet"), pod.IPv4.String()+" 8080")
	r.cfg.ProbeScope = ProbeKubelet
	r.open()
	p := r.capture(pod)
	must(t, r.node.followKubelet())
	if got := probe(); !strings.HasPrefix(got, "app from=10.") {
		t.Errorf("kubelet: %q", got)
	}
	got, err := ask(r.host.Host, pod.Addr(8080).String(), "x")
	wants(t, "another process of the host", got, err, "inbound plaintext")
	if n := podCount(t, p, "pass_host"); n != 1 {
		t.Errorf("%d passed", n)
	}
}
