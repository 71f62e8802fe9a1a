// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/test/fakeagent"
	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/rig"
)

// readyWait and stopWait are for a machine with other things to do; stopWait
// is also more than the proxy grants its connections.
const (
	readyWait = 20 * time.Second
	stopWait  = 10 * time.Second
)

// startProxies runs the proxy on the nodes and waits until they are ready.
func (d *demo) startProxies(ctx context.Context, nodes ...*netlab.Node) error {
	var err error
	if d.mesh, err = rig.New(d.lab, d.ztunnel); err != nil {
		return err
	}
	if err := errors.Join(d.mesh.SetNameservers(fixed().outside4), d.mesh.SetState(d.state(policies{}))); err != nil {
		return err
	}
	for _, n := range nodes {
		p, err := d.mesh.Start(n, rig.Options{Env: map[string]string{"CONNECTION_TERMINATION_DEADLINE": "2s"}})
		if err != nil {
			return err
		}
		d.proxies = append(d.proxies, p)
		for _, pod := range d.pods() {
			if !pod.captured || pod.node != n.Name() {
				continue
			}
			if err := p.Enrol(pod.Pod, namespace); err != nil {
				return fmt.Errorf("enrol %s: %w", pod.Name(), err)
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, readyWait)
	defer cancel()
	for _, p := range d.proxies {
		if err := awaitReady(ctx, p, d.captives(p)); err != nil {
			return err
		}
	}
	return nil
}

// captives are how many pods of a node the mesh captures.
func (d *demo) captives(p *rig.Proxy) int {
	n := 0
	for _, pod := range d.pods() {
		if pod.captured && pod.node == p.Node().Name() {
			n++
		}
	}
	return n
}

// awaitReady waits until the proxy is ready and has taken so many pods: it may
// have been ready before it was told of them.
func awaitReady(ctx context.Context, p *rig.Proxy, pods int) error {
	for {
		taken := 0
		for _, a := range p.Agent.Answers() {
			var refused *fakeagent.Refused
			if errors.As(a.Err, &refused) {
				return fmt.Errorf("%s refused to %s %s: %w", p.Node().Name(), a.Request, a.UID, refused)
			}
			if a.Request == "add" && a.Err == nil {
				taken++
			}
		}
		if taken >= pods {
			return p.AwaitReady(ctx)
		}
		if !p.Running() {
			return fmt.Errorf("the proxy of %s has ended", p.Node().Name())
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s has taken %d of %d pods: %w", p.Node().Name(), taken, pods, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Ports of the proxy's own pages.
const (
	adminPage, statsPage = "15000", "15020"
)

// page gets one of the proxy's pages; an answer other than 200 is an error.
func page(ctx context.Context, p *rig.Proxy, name string) (string, error) {
	status, body, err := p.Get(ctx, name)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("%s of %s: %d %s", name, p.Node().Name(), status, body)
	}
	return body, err
}

func (d *demo) stopProxies() {
	if len(d.proxies) == 0 {
		return
	}
	d.table.check("both proxies end when they are told to", func() (string, error) {
		var errs []error
		for _, p := range d.proxies {
			errs = append(errs, stop(p))
		}
		return "SIGTERM, exit status 0", errors.Join(errs...)
	})
	d.table.check("`ztunnel cleanup` takes the pins away", func() (string, error) {
		var errs []error
		for _, p := range d.proxies {
			errs = append(errs, p.Cleanup(), gone(p.PinDir()))
		}
		return "none below " + filepath.Dir(d.proxies[0].PinDir()), errors.Join(errs...)
	})
}

// stop asks a proxy to end, as a kubelet does. One that does not is killed
// when the mesh is closed.
func stop(p *rig.Proxy) error {
	if !p.Running() {
		return fmt.Errorf("the proxy of %s had ended before", p.Node().Name())
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopWait)
	defer cancel()
	if err := p.Signal(unix.SIGTERM); err != nil {
		return err
	}
	status, err := p.Wait(ctx)
	if err == nil && status != 0 {
		err = fmt.Errorf("the proxy of %s ended with %d", p.Node().Name(), status)
	}
	return err
}

// logTail is how many lines of a log are printed.
const logTail = 60

func (d *demo) printLogs(out io.Writer) {
	for _, p := range d.proxies {
		lines := p.Output.Lines(0)
		fmt.Fprintf(out, "\n--- the end of the log of %s, %d lines in all\n", p.Node().Name(), len(lines))
		fmt.Fprintln(out, strings.Join(lines[max(0, len(lines)-logTail):], "\n"))
	}
}

// follow writes a proxy's log to out as it grows, until ctx ends.
func follow(ctx context.Context, p *rig.Proxy, out io.Writer) {
	for mark := 0; ; {
		lines := p.Output.Lines(mark)
		for _, line := range lines {
			fmt.Fprintln(out, line)
		}
		mark += len(lines)
		if _, err := p.Output.Await(ctx, mark); err != nil {
			return
		}
	}
}
