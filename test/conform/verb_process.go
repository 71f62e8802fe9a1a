// SPDX-License-Identifier: Apache-2.0

package conform

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// runVerb: run ["NAME=VALUE"...] args "..." -> code [stdout|stderr has|matches "text"]...
// A process of its own, without an agent.
func runVerb(r *reader) action {
	var settings []string
	for r.more() && !r.maybe("args") {
		settings = append(settings, r.text("NAME=VALUE"))
	}
	args := strings.Fields(r.text("arguments"))
	r.want("->")
	code := r.number("exit code")
	type look struct {
		stderr  bool
		text    string
		pattern *regexp.Regexp
	}
	var looks []look
	for r.more() {
		l := look{stderr: r.oneOf("stream", "stdout", "stderr") == "stderr"}
		matches := r.oneOf("comparison", "has", "matches") == "matches"
		if l.text = r.text("a text"); matches {
			var err error
			if l.pattern, err = regexp.Compile(l.text); err != nil {
				r.fail("%w", err)
			}
		}
		looks = append(looks, l)
	}
	return func(ctx context.Context, p *player) error {
		got, out, errs, err := p.runOnce(ctx, settings, args)
		if err != nil {
			return err
		}
		printed := fmt.Sprintf("stdout %.600q, stderr %.600q", out, errs)
		if got != code {
			return fmt.Errorf("it exited with %d: %s", got, printed)
		}
		for _, l := range looks {
			in := out
			if l.stderr {
				in = errs
			}
			if l.pattern != nil && !l.pattern.MatchString(in) || l.pattern == nil && !strings.Contains(in, l.text) {
				return fmt.Errorf("%s", printed)
			}
		}
		return nil
	}
}

func (p *player) runOnce(ctx context.Context, settings, args []string) (code int, out, errs string, err error) {
	env, err := p.environment("node1")
	if err != nil {
		return 0, "", "", err
	}
	for _, s := range settings {
		if s, err = p.expand(s); err != nil {
			return 0, "", "", err
		}
		name, value, ok := strings.Cut(s, "=")
		if env[name] = value; !ok {
			delete(env, name)
		}
	}
	proxy, err := p.suite.Stage.Start(Start{Node: "node1", Env: env, Args: args})
	if err != nil {
		return 0, "", "", err
	}
	code, err = proxy.Wait(ctx)
	out, errs = strings.Join(proxy.Output().Lines(0), "\n"), strings.Join(proxy.Errors().Lines(0), "\n")
	return code, out, errs, errors.Join(err, proxy.Close())
}

// signalVerb: signal node TERM|INT|KILL
func signalVerb(r *reader) action {
	node, sig := r.node(), r.oneOf("signal", "TERM", "INT", "KILL")
	return func(_ context.Context, p *player) error { return p.running[node].Signal(sig) }
}

// exitVerb: exit node code [within seconds] [after seconds]
func exitVerb(r *reader) action {
	node, code, within, after := r.node(), r.number("exit code"), 0, 0
	if r.maybe("within") {
		within = r.number("number of seconds")
	}
	if r.maybe("after") {
		after = r.number("number of seconds")
	}
	return func(ctx context.Context, p *player) error {
		began := time.Now()
		got, err := p.running[node].Wait(ctx)
		took := time.Since(began)
		switch {
		case err != nil:
			return err
		case got != code:
			return fmt.Errorf("the exit code is %d", got)
		case within > 0 && took > time.Duration(within)*time.Second, took < time.Duration(after)*time.Second:
			return fmt.Errorf("it took %v", took)
		}
		return nil
	}
}

// startVerb: start node, which must have ended.
func startVerb(r *reader) action {
	node := r.node()
	return func(ctx context.Context, p *player) error {
		if err := p.running[node].Close(); err != nil {
			return err
		}
		if err := p.startNode(node); err != nil {
			return err
		}
		p.marks[node] = 0
		if p.script.agent == "script" {
			return nil
		}
		return p.ready(ctx, node)
	}
}

// readyVerb: ready node
func readyVerb(r *reader) action {
	node := r.node()
	return func(ctx context.Context, p *player) error { return p.ready(ctx, node) }
}

// aliveVerb: alive node
func aliveVerb(r *reader) action {
	node := r.node()
	return func(_ context.Context, p *player) error {
		now, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		if code, err := p.running[node].Wait(now); err == nil {
			return fmt.Errorf("it has ended with %d", code)
		}
		return nil
	}
}
