// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/test/fakeagent"
	"github.com/ztunnel-go/ztunnel/test/ignore"
	"github.com/ztunnel-go/ztunnel/test/netlab"
)

// Options change how a proxy is run.
type Options struct {
	Env     map[string]string // over what the rig sets
	NoAgent bool              // somebody else listens on [Proxy.Socket]
	// In is the namespace that the process lives in, as each of a DaemonSet's
	// pods has one; nil: the node's.
	In *netlab.Host
	// Beside is a proxy of the same node that this one is to replace: they
	// share the agent.
	Beside *Proxy
	// Foreign says that it is another ztunnel, which has no cleanup command.
	Foreign bool
}

// A Proxy is the proxy of one node: its process, which may be killed and
// started again, and the agent that tells it its pods.
type Proxy struct {
	// Agent tells the proxy its pods; nil with Options.NoAgent.
	Agent *fakeagent.Agent
	// Output is what all processes have printed.
	Output *Output

	mesh *Mesh
	node *netlab.Node
	host *netlab.Host // where the process runs: the node, a namespace of its own or, of a dedicated one, its pod
	wrap []string     // see Dedicated
	env  map[string]string
	// cleans says that it leaves something, and knows how to take it away.
	cleans bool

	mu      sync.Mutex
	process *process // guarded by mu; the last one started
}

// Start runs a proxy on a node. It returns at once; see [Proxy.AwaitReady].
func (m *Mesh) Start(node *netlab.Node, opts Options) (*Proxy, error) {
	p := &Proxy{mesh: m, node: node, host: node.Host, cleans: !opts.Foreign, Output: NewOutput()}
	if opts.In != nil {
		p.host = opts.In
	}
	p.env = map[string]string{
		"NODE_NAME": node.Name(), "CAPTURE": "ebpf", "CGROUP_ROOT": m.lab.CgroupRoot(),
		"BPF_PIN_DIR": filepath.Join(m.lab.PinDir(), node.Name()), "HOST_NETNS": node.Path(),
		"HANDOVER_SOCK": filepath.Join(m.lab.Dir(), node.Name()+".next"),
		"INPOD_UDS":     p.Socket(), "LOCAL_XDS_PATH": m.state, "XDS_ADDRESS": "",
		"FAKE_CA": "true", "EMBEDDED_CA_DIR": m.CADir(DefaultCA), "RESOLV_CONF": m.resolv,
	}
	maps.Copy(p.env, opts.Env)
	if opts.Beside != nil {
		p.Agent = opts.Beside.Agent
	} else if !opts.NoAgent {
		agent, err := fakeagent.Start(p.Socket())
		if err != nil {
			return nil, err
		}
		p.Agent = agent
	}
	if opts.Beside == nil && p.Agent != nil {
		m.mu.Lock()
		m.agents = append(m.agents, p.Agent)
		m.mu.Unlock()
	}
	m.add(p)
	return p, p.Restart()
}

func (m *Mesh) add(p *Proxy) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.proxies = append(m.proxies, p)
}

// Socket is where the agent listens.
func (p *Proxy) Socket() string { return filepath.Join(p.mesh.lab.Dir(), p.node.Name()+".sock") }

// PinDir is where the proxy keeps its BPF objects.
func (p *Proxy) PinDir() string { return p.env["BPF_PIN_DIR"] }

// Node is where the proxy runs.
func (p *Proxy) Node() *netlab.Node { return p.node }

// A process is one life of a proxy.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // of waiting; after done
}

// Restart starts the process, which must not be running.
func (p *Proxy) Restart() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.process != nil && !p.process.ended() {
		return fmt.Errorf("the proxy of %s is running", p.node.Name())
	}
	cmd := p.command("proxy", "ztunnel")
	if err := p.host.Start(cmd); err != nil {
		return fmt.Errorf("start the proxy of %s: %w", p.node.Name(), err)
	}
	life := &process{cmd: cmd, done: make(chan struct{})}
	p.process = life
	go func() { // ends with the process, which close kills
		life.err = cmd.Wait()
		close(life.done)
	}()
	return nil
}

func (l *process) ended() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

func (p *Proxy) command(args ...string) *exec.Cmd {
	argv := slices.Concat(p.wrap, []string{p.mesh.binary}, args)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = p.Output, p.Output
	for _, name := range slices.Sorted(maps.Keys(p.env)) {
		if ignore.Variable(name) {
			continue
		}
		cmd.Env = append(cmd.Env, name+"="+p.env[name])
	}
	return cmd
}

// last is the last process started; nil only if none could be.
func (p *Proxy) last() *process {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.process
}

// Running says whether the process is.
func (p *Proxy) Running() bool { return !p.last().ended() }

// Pid is that of the process, also when it has ended.
func (p *Proxy) Pid() int { return p.last().cmd.Process.Pid }

// Signal sends the process a signal.
func (p *Proxy) Signal(sig os.Signal) error { return p.last().cmd.Process.Signal(sig) }

// Wait waits for the process to end and returns its exit status, -1 after a
// signal.
func (p *Proxy) Wait(ctx context.Context) (int, error) {
	life := p.last()
	select {
	case <-life.done:
	case <-ctx.Done():
		return 0, fmt.Errorf("the proxy of %s runs on: %w", p.node.Name(), ctx.Err())
	}
	var exit *exec.ExitError
	if life.err != nil && !errors.As(life.err, &exit) {
		return 0, life.err
	}
	return life.cmd.ProcessState.ExitCode(), nil
}

// Kill ends the process as a crash does, and waits until it is gone.
func (p *Proxy) Kill() error {
	if err := p.Signal(unix.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	_, err := p.Wait(context.Background())
	return err
}

// Post is [Proxy.Get] for what a page does.
func (p *Proxy) Post(ctx context.Context, page string) (status int, body string, err error) {
	return p.request(ctx, http.MethodPost, page)
}

// Cleanup runs the cleanup command with the proxy's environment. What it
// prints is part of Output.
func (p *Proxy) Cleanup() error {
	cmd := p.command("cleanup")
	if err := p.node.Start(cmd); err != nil {
		return err
	}
	return cmd.Wait()
}

// close ends the process and removes what capture has left.
func (p *Proxy) close() error {
	var errs []error
	if p.last() != nil {
		errs = append(errs, p.Kill())
	}
	if p.cleans {
		errs = append(errs, p.Cleanup())
	}
	return errors.Join(errs...)
}

// Enrol has the agent announce a pod, and returns what the proxy said. Before
// the proxy has connected it is told later.
func (p *Proxy) Enrol(pod *netlab.Pod, namespace string) error {
	return p.Agent.Add(fakeagent.Pod{
		UID: pod.Name(), Name: pod.Name(), Namespace: namespace, ServiceAccount: pod.Name(), NS: pod.NS(),
	})
}

// requestTimeout bounds a request to the proxy's own pages.
const requestTimeout = 5 * time.Second

// Get asks one of the proxy's pages from where it runs: "15000/config_dump" is the
// path /config_dump on port 15000.
func (p *Proxy) Get(ctx context.Context, page string) (status int, body string, err error) {
	return p.request(ctx, http.MethodGet, page)
}

func (p *Proxy) request(ctx context.Context, method, page string) (status int, body string, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://127.0.0.1:"+page, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := p.host.HTTPClient().Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// ReadyPage is the page for [Proxy.Get] that says whether the proxy is ready.
const ReadyPage = "15021/healthz/ready"

// AwaitReady waits until the proxy says that it is ready: its agent's snapshot
// is taken and every pod is captured.
func (p *Proxy) AwaitReady(ctx context.Context) error {
	return p.await(ctx, ReadyPage, func(status int, _ string) bool { return status == http.StatusOK })
}

// AwaitPage waits until a page contains text.
func (p *Proxy) AwaitPage(ctx context.Context, page, text string) error {
	return p.await(ctx, page, func(_ int, body string) bool { return strings.Contains(body, text) })
}

func (p *Proxy) await(ctx context.Context, page string, good func(status int, body string) bool) error {
	const poll = 20 * time.Millisecond
	life := p.last()
	for {
		status, body, err := p.Get(ctx, page)
		if err == nil && good(status, body) {
			return nil
		}
		select {
		case <-time.After(poll):
		case <-life.done:
			return fmt.Errorf("the proxy of %s has ended: %w", p.node.Name(), life.err)
		case <-ctx.Done():
			return fmt.Errorf("page %s of %s, at last %d %.500q %v: %w", page, p.node.Name(), status, body, err, context.Cause(ctx))
		}
	}
}
