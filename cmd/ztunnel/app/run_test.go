// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/logs"
	"github.com/ztunnel-go/ztunnel/test/fakeagent"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

const localState = `
workloads:
- uid: c//Pod/default/client
  name: client
  namespace: default
  serviceAccount: client
  trustDomain: cluster.local
  workloadIps: ["10.0.0.1"]
  protocol: HBONE
  services: {}
- uid: c//Pod/default/server
  name: server
  namespace: default
  serviceAccount: server
  trustDomain: cluster.local
  workloadIps: ["10.0.0.2"]
  protocol: HBONE
  services:
    default/web.default.svc.cluster.local:
      80: 8080
- uid: far
  name: far
  namespace: default
  serviceAccount: far
  trustDomain: cluster.local
  workloadIps: []
  hostname: far.example
  services:
    default/far.default.svc.cluster.local:
      80: 80
services:
- name: web
  namespace: default
  hostname: web.default.svc.cluster.local
  vips: ["/10.96.0.1"]
  ports:
    80: 8080
- name: far
  namespace: default
  hostname: far.default.svc.cluster.local
  vips: ["/10.96.0.2"]
  ports:
    80: 80
`

// A running is a node in this process, which captures nothing.
type running struct {
	t     *testing.T
	cfg   *Config
	stop  *stopper
	out   output
	ended chan struct{}
	err   error // after ended
}

// variables are those of a node that needs nothing of the machine.
func variables(t *testing.T) map[string]string {
	t.Helper()
	resolv := inDir(t, "resolv.conf")
	if err := os.WriteFile(resolv, []byte("nameserver 192.0.2.53\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return map[string]string{
		"FAKE_CA": "true", "EMBEDDED_CA_DIR": t.TempDir(), "LOCAL_XDS": localState, "XDS_ADDRESS": "",
		"CAPTURE": "istio-cni", "INPOD_UDS": inDir(t, "zds.sock"), "HANDOVER_SOCK": inDir(t, "handover.sock"), "RESOLV_CONF": resolv,
	}
}

// start runs a node until the test ends, with ports of its own.
func start(t *testing.T, vars map[string]string, change ...func(*Config)) *running {
	t.Helper()
	r := &running{t: t, cfg: load(t, vars), ended: make(chan struct{})}
	ports := freePorts(t, 3)
	r.cfg.AdminPort, r.cfg.StatsPort, r.cfg.ReadinessPort = ports[0], ports[1], ports[2]
	for _, c := range change {
		c(r.cfg)
	}
	log, err := logs.New(logs.Config{Output: &r.out})
	if err != nil {
		t.Fatal(err)
	}
	if err := log.Close(); err != nil { // which ends buffering
		t.Fatal(err)
	}
	r.stop = newStopper(log.Logger(), func(int) {})
	go func() {
		defer close(r.ended)
		r.err = run(r.stop.ctx, nodeParams{cfg: r.cfg, version: readBuildInfo(""), log: log, stop: r.stop})
	}()
	t.Cleanup(func() {
		r.stop.cancel()
		<-r.ended
		r.stop.close()
	})
	return r
}

// wait waits for the end of a run, and returns its error.
func (r *running) wait() error {
	r.t.Helper()
	select {
	case <-r.ended:
	case <-time.After(patience):
		r.t.Fatalf("it runs on:\n%s", r.out.String())
	}
	return r.err
}

// ask makes a request on a connection of its own.
func (r *running) ask(method string, port uint16, path string) (int, string) {
	status, body, err := request(method, port, path)
	if err != nil {
		r.t.Helper()
		r.t.Fatal(err)
	}
	return status, body
}

func request(method string, port uint16, path string) (int, string, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	req, err := http.NewRequest(method, fmt.Sprintf("http://127.0.0.1:%d%s", port, path), nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// eventually waits until a condition holds of a node that runs.
func (r *running) eventually(what string, holds func() bool) {
	r.t.Helper()
	eventually(r.t, what, func() bool {
		select {
		case <-r.ended:
			r.t.Fatalf("it ended: %v", r.err)
		default:
		}
		return holds()
	})
}

func (r *running) awaitReady() {
	r.t.Helper()
	r.eventually("it is ready", func() bool {
		status, _, err := request("GET", r.cfg.ReadinessPort, "/healthz/ready")
		return err == nil && status == 200
	})
}

func TestANodeServesItsPagesAndEnds(t *testing.T) {
	leak.Check(t)
	vars := variables(t)
	r := start(t, vars)
	r.eventually("it waits for its agent only", func() bool {
		_, body, err := request("GET", r.cfg.ReadinessPort, "/healthz/ready")
		return err == nil && body == "not ready, pending: workload proxy manager\n"
	})
	agent, err := fakeagent.Start(vars["INPOD_UDS"])
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	r.awaitReady()
	for _, tc := range []struct {
		method, path string
		port         uint16
		want         string // in the body
	}{
		{"GET", "/", r.cfg.AdminPort, "/config_dump"},
		{"POST", "/logging", r.cfg.AdminPort, "info"},
		{"GET", "/debug/live", r.cfg.AdminPort, "{}"},
		{"GET", "/debug/pods", r.cfg.AdminPort, "[]"},
		{"GET", "/debug/bpf", r.cfg.AdminPort, "["},
		{"GET", "/debug/route?src=10.0.0.1&dst=10.96.0.1:80", r.cfg.AdminPort, "dial: 10.0.0.2:15008\nauthority: 10.0.0.2:8080\n"},
		{"GET", "/metrics", r.cfg.StatsPort, "istio_build"},
		{"GET", "/stats/prometheus", r.cfg.StatsPort, "# EOF"},
	} {
		if status, body := r.ask(tc.method, tc.port, tc.path); status != 200 || !strings.Contains(body, tc.want) {
			t.Errorf("%s: %d %s, want %q", tc.path, status, body, tc.want)
		}
	}
	r.checkDump()
	r.checkMetrics()
	if status, body := r.ask("POST", r.cfg.AdminPort, "/quitquitquit"); status != 200 || body != "shutdown now\n" {
		t.Errorf("%d %s", status, body)
	}
	if err := r.wait(); err != nil {
		t.Error(err)
	}
	for _, port := range []uint16{r.cfg.AdminPort, r.cfg.StatsPort, r.cfg.ReadinessPort} {
		if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			c.Close()
			t.Errorf("port %d is open still", port)
		}
	}
	r.checkOrder("received explicit shutdown signal", `listener drained\taddress=\S+ component="readiness"`, `listener drained\taddress=\S+ component="stats"`,
		`listener drained\taddress=\S+ component="admin"`, `app\tshutdown complete`)
}

// checkDump looks at what only this package decides.
func (r *running) checkDump() {
	r.t.Helper()
	_, body := r.ask("GET", r.cfg.AdminPort, "/config_dump")
	var dump struct {
		Warnings     []string
		Config       map[string]any
		Version      map[string]string
		Workloads    []map[string]any
		StaticConfig struct{ Workloads, Services []map[string]any }
	}
	if err := json.Unmarshal([]byte(body), &dump); err != nil {
		r.t.Fatal(err)
	}
	if len(dump.Warnings) != 1 || !strings.HasPrefix(dump.Warnings[0], "FAKE_CA is on: certificates are signed by the embedded authority in ") {
		r.t.Errorf("warnings %q", dump.Warnings)
	}
	if len(dump.Workloads) != 3 || len(dump.StaticConfig.Workloads) != 3 || len(dump.StaticConfig.Services) != 2 {
		r.t.Errorf("%d workloads, static %d and %d services", len(dump.Workloads), len(dump.StaticConfig.Workloads), len(dump.StaticConfig.Services))
	}
	if dump.Config["adminAddr"] == nil && dump.Config["capture"] == nil || dump.Version["cryptoProvider"] != "tls-go" {
		r.t.Errorf("config %v, version %v", dump.Config, dump.Version)
	}
}

// checkOrder wants lines of the log, given by expressions, in this order.
func (r *running) checkOrder(lines ...string) {
	r.t.Helper()
	rest := r.out.String()
	for _, line := range lines {
		at := regexp.MustCompile(line).FindStringIndex(rest)
		if at == nil {
			r.t.Fatalf("no %q after the one before in:\n%s", line, r.out.String())
		}
		rest = rest[at[1]:]
	}
}

func TestANodeThatIsStoppedBeforeAnythingCame(t *testing.T) {
	leak.Check(t)
	r := start(t, variables(t))
	r.stop.cancel() // maybe while it is being built
	if err := r.wait(); err != nil {
		t.Error(err)
	}
}

func TestAnAgentThatBreaksTheProtocolEndsTheProcess(t *testing.T) {
	leak.Check(t)
	vars := variables(t)
	l, err := fakeagent.Listen(vars["INPOD_UDS"])
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r := start(t, vars)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := l.Accept(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SnapshotSent(); err != nil {
		t.Fatal(err)
	}
	r.awaitReady()
	if err := c.Keep("a"); err == nil || err.Error() != `failure to process message : ProtocolError("pod keep received after snapshot")` {
		t.Errorf("answered %v", err)
	}
	if err := r.wait(); err == nil || err.Error() != `workload proxy manager: ProtocolError("pod keep received after snapshot")` {
		t.Errorf("ended with %v", err)
	}
	r.checkOrder(`error\tinpod::statemanager\tWorkloadProxyManager run error: ProtocolError\("pod keep received after snapshot"\)`, "shutdown complete")
}

func TestANodeThatCannotStartLeavesNothing(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, tc := range []struct {
		name, variable, value string
		change                func(*Config)
		text                  string
	}{
		{"taken port", "", "", func(c *Config) { c.AdminPort = netip.MustParseAddrPort(taken.Addr().String()).Port() }, "admin server starts: .*address already in use"},
		{"bad state", "LOCAL_XDS", "workloads: [{nonsense: 1}]", nil, ".*nonsense.*"},
		{"no resolver", "RESOLV_CONF", "/nonexistent", nil, "resolver configuration: open /nonexistent: no such file or directory"},
		{"bad resolver", "RESOLV_CONF", "/proc/self/environ", nil, "/proc/self/environ: .*"},
		{"authority", "EMBEDDED_CA_DIR", "/proc/self/nowhere", nil, ".*/proc/self/nowhere.*"},
		{"capture", "", "", func(c *Config) { c.Capture.Mode = "magic" }, `capture mode "magic" is none of auto, ebpf, istio-cni`},
		{"probe scope", "", "", func(c *Config) { c.Capture.ProbeScope = "world" }, `probe scope "world" is neither host nor kubelet`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			leak.Check(t)
			vars := variables(t)
			if tc.variable != "" {
				vars[tc.variable] = tc.value
			}
			r := start(t, vars, func(c *Config) {
				if tc.change != nil {
					tc.change(c)
				}
			})
			if err := r.wait(); err == nil || !regexp.MustCompile("^"+tc.text+"$").MatchString(err.Error()) {
				t.Errorf("%v, want %s", err, tc.text)
			}
		})
	}
}

func TestTheEndIsNotHeldUpByAProbe(t *testing.T) {
	leak.Check(t)
	vars := variables(t)
	agent, err := fakeagent.Start(vars["INPOD_UDS"])
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	r := start(t, vars)
	r.awaitReady()
	for _, port := range []uint16{r.cfg.AdminPort, r.cfg.ReadinessPort} { // who say nothing
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	r.stop.quit()
	if err := r.wait(); err != nil {
		t.Error(err)
	}
}

func TestDecisionsExplained(t *testing.T) {
	leak.Check(t)
	n := &node{nodeParams: nodeParams{cfg: load(t, variables(t))}}
	log, err := logs.New(logs.Config{Output: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	n.logger = log.Logger()
	if err := n.buildState(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer n.close()
	for _, tc := range []struct {
		src, dst string
		want     []string // lines, in this order, with others between
		err      string
	}{
		{"10.0.0.1", "10.96.0.1:80", []string{
			"source: c//Pod/default/client (spiffe://cluster.local/ns/default/sa/client)", "outcome: HBONE", "dial: 10.0.0.2:15008",
			"authority: 10.0.0.2:8080", "next hop: c//Pod/default/server", "service: default/web.default.svc.cluster.local",
			"expected identities: [spiffe://cluster.local/ns/default/sa/server]",
		}, ""},
		{"10.0.0.1", "192.0.2.1:443", []string{"outcome: TCP", "dial: 192.0.2.1:443"}, ""},
		{"10.0.0.1", "10.96.0.2:80", []string{"outcome: resolve", "to be resolved first: far.example"}, ""},
		{"10.0.0.1", "10.96.0.1:81", []string{"outcome: refuse", "reason: no_healthy_upstream", "means: The service has no endpoint that may be used.",
			"look at: The service's endpoints, their health and locality."}, "no healthy upstream: 10.96.0.1:81"},
		{"10.0.0.1", "127.0.0.1:15001", []string{"reason: recursive_call"}, "attempted recursive call to ourselves"},
		{"10.0.0.9", "10.96.0.1:80", []string{"reason: workload_unknown"}, `no workload has the address 10.0.0.9 in network ""`},
	} {
		lines, err := n.explain(netip.MustParseAddr(tc.src), netip.MustParseAddrPort(tc.dst))
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != tc.err {
			t.Errorf("%s to %s: %q, want %q", tc.src, tc.dst, got, tc.err)
		}
		at := 0
		for _, line := range lines {
			if at < len(tc.want) && line == tc.want[at] {
				at++
			}
		}
		if at < len(tc.want) {
			t.Errorf("%s to %s: no %q in %q", tc.src, tc.dst, tc.want[at], lines)
		}
	}
}

func TestAnIdentityIsReleasedWithItsLastPod(t *testing.T) {
	var held identities
	a, err := identity.New("td", "ns", "a")
	if err != nil {
		t.Fatal(err)
	}
	held.hold(a)
	held.hold(a)
	if held.release(a) {
		t.Error("released with a pod left")
	}
	if !held.release(a) {
		t.Error("not released with the last")
	}
	if len(held.pods) != 0 {
		t.Errorf("left: %v", held.pods)
	}
}
