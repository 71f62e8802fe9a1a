// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/netns"
	"github.com/ztunnel-go/ztunnel/test/netlab"
)

// childArgument makes a process of this binary a proxy for one pod: see
// beProxy.
const childArgument = "be-a-proxy"

// beProxy captures the pod of a namespace, says "ready" and serves until it is
// killed, or until its standard input ends. Arguments: pin directory, cgroup
// root, host's namespace, pod's namespace.
func beProxy(args []string) {
	fail := func(err error) {
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	ctx := context.Background()
	n, err := Open(ctx, Config{Mode: EBPF, PinDir: args[0], CgroupRoot: args[1], HostNetns: args[2], SpoofSource: true, DNS: true},
		slog.New(slog.NewTextHandler(os.Stderr, nil)))
	fail(err)
	ns, err := netns.Open(args[3])
	fail(err)
	pod, err := n.Add(ctx, PodInfo{Name: "child"}, ns)
	fail(err)
	p := &proxy{Pod: pod}
	p.serve()
	fail(p.Enable(ctx))
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// child starts a proxy process for the pod, which kill ends as kill -9 does.
func (r *rig) child(pod *netlab.Pod) (kill func()) {
	r.t.Helper()
	self, err := os.Executable()
	must(r.t, err)
	cmd := exec.Command(self, childArgument, r.cfg.PinDir, r.cfg.CgroupRoot, r.cfg.HostNetns, pod.Path())
	_, err = cmd.StdinPipe()
	must(r.t, err)
	stdout, err := cmd.StdoutPipe()
	must(r.t, err)
	cmd.Stderr = testWriter{r.t}
	// Not in the pod's nor in the host's namespace, as in a cluster.
	must(r.t, r.lab.Fabric().Start(cmd))
	dead := false
	kill = func() {
		if !dead {
			dead = true
			cmd.Process.Kill()
			cmd.Wait()
		}
	}
	r.t.Cleanup(kill)
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || line != "ready\n" {
		r.t.Fatalf("child: %q, %v", line, err)
	}
	return kill
}

// waits wants a connect that was neither answered nor refused.
func waits(t *testing.T, what string, c net.Conn, err error) {
	t.Helper()
	if err == nil {
		c.Close()
		t.Errorf("%s is answered without a proxy", what)
	} else if !os.IsTimeout(err) && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%s does not wait: %v", what, err)
	}
}

func TestKilledProxiesLeaveCaptureClosed(t *testing.T) {
	r := newRig(t)
	pod, other := r.pod("a"), r.pod("b")
	app(t, other.Host, "[::]:8080")
	must(t, r.node.Close())
	seen := recordTCP(t, pod)
	if got, err := ask(pod.Host, other.Addr(8080).String(), "x"); err != nil {
		t.Fatalf("before enrolment: %q, %v", got, err)
	}
	if len(seen()) == 0 {
		t.Fatal("the recorder sees nothing at all")
	}

	kill := r.child(pod)
	live := conversation(t, pod.Host, other.Addr(8080).String())
	packets := recordTCP(t, pod)
	kill()
	if _, err := live.Read(make([]byte, 1)); err == nil {
		t.Error("a captured connection outlived the proxy")
	}
	for _, to := range []string{other.Addr(8080).String(), other.Addr6(8080).String(), "203.0.113.9:443"} {
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		c, err := pod.Dial(ctx, "tcp", to)
		waits(t, to, c, err)
		cancel()
	}
	u, err := pod.Dial(context.Background(), "udp", other.Addr(53).String())
	must(t, err)
	defer u.Close()
	u.Write([]byte("a name"))
	u.SetDeadline(time.Now().Add(300 * time.Millisecond))
	if n, err := u.Read(make([]byte, 1)); !os.IsTimeout(err) {
		t.Errorf("a query does not wait: %d bytes, %v", n, err)
	}
	for _, to := range []string{pod.Addr(8080).String(), pod.Addr6(8080).String(), pod.Addr(15008).String()} {
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		c, err := other.Dial(ctx, "tcp", to)
		waits(t, "inbound to "+to, c, err)
		cancel()
	}
	for _, p := range packets() {
		// What others send comes in, and is not answered.
		if p.Src.Addr() == pod.IPv4 || p.Src.Addr() == pod.IPv6 {
			t.Errorf("left the pod: %v", p)
		}
	}

	r.child(pod) // nobody enrols anything by hand
	got, err := ask(pod.Host, other.Addr(8080).String(), "x")
	wants(t, "after the restart", got, err, "outbound dst="+other.Addr(8080).String())
}
