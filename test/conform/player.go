// SPDX-License-Identifier: Apache-2.0

package conform

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ztunnel-go/ztunnel/test/netlab/serve"
)

// A player plays one scenario in a group's environment.
type player struct {
	*group
	script *Script

	ends     map[string]endpoint // connections and streams, by the scenario's names
	tunnels  map[string]*peer
	servers  map[string]*acceptor
	records  map[string]Recording
	scripted *scriptedAgent
	marks    map[string]int     // lines that a node had printed before
	scrapes  map[string]*scrape // metrics of a node before
	closers  []func()

	mu     sync.Mutex
	served []*peer // guarded by mu; tunnels that servers of the scenario took
}

func newPlayer(g *group, s *Script) *player {
	return &player{
		group: g, script: s, ends: map[string]endpoint{}, tunnels: map[string]*peer{}, servers: map[string]*acceptor{},
		records: map[string]Recording{}, marks: map[string]int{}, scrapes: map[string]*scrape{},
	}
}

// play does all steps. An error names the file and the line.
func (p *player) play(ctx context.Context) error {
	defer p.close()
	if err := p.begin(ctx); err != nil {
		return fmt.Errorf("%s: before the first step: %w", p.script.source, err)
	}
	for _, st := range p.script.steps {
		ctx, cancel := context.WithTimeout(ctx, p.suite.Patience)
		err := st.action(ctx, p)
		cancel()
		if err != nil {
			return fmt.Errorf("%s:%d: %s: %w", p.script.source, st.line, st.text, err)
		}
	}
	return nil
}

// begin puts the scenario's state in force and notes what there is before it.
func (p *player) begin(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, p.suite.Patience)
	defer cancel()
	if p.script.agent != "script" && !p.script.local && len(p.running) > 0 {
		if err := p.apply(ctx, p.script.state); err != nil {
			return err
		}
	}
	for node, proxy := range p.running {
		p.marks[node] = proxy.Output().Mark()
	}
	if p.script.agent == "script" { // whose proxy has only begun
		p.marks = map[string]int{}
		return nil
	}
	// Metrics are kept only where they are asked about: a scrape costs.
	if !p.script.usesMetrics() {
		return nil
	}
	for node := range p.running {
		s, err := p.scrape(ctx, node)
		if err != nil {
			return err
		}
		p.scrapes[node] = s
	}
	return nil
}

func (s *Script) usesMetrics() bool {
	return slices.ContainsFunc(s.steps, func(st step) bool { return strings.Contains(st.text, "metric ") })
}

// later has f called at the end of the scenario, last first.
func (p *player) later(f func()) { p.closers = append(p.closers, f) }

func (p *player) close() {
	for _, f := range slices.Backward(p.closers) {
		f()
	}
	if p.scripted != nil {
		p.scripted.close()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.served {
		t.close()
	}
}

// expand puts values in the place of variables.
func (p *player) expand(text string) (string, error) {
	var failed error
	out := variable.ReplaceAllStringFunc(text, func(v string) string {
		value, err := p.value(strings.Trim(v, "{}"))
		if err != nil && failed == nil {
			failed = err
		}
		return value
	})
	return out, failed
}

func (p *player) value(name string) (string, error) {
	kind, of, ok := strings.Cut(name, ":")
	switch {
	case kind == "uid":
		return uidOf(of), nil
	case ok:
		e, err := p.end(of)
		if err != nil {
			return "", err
		}
		local, remote := e.addrs()
		if kind == "local" {
			return local.String(), nil
		}
		return remote.String(), nil
	}
	return p.suite.addr(name)
}

// addr is the address that a place's name, with a 6 or not, stands for.
func (s *Suite) addr(name string) (string, error) {
	place, six := name, false
	if !slices.Contains(places(), name) {
		place, six = strings.TrimSuffix(name, "6"), true
	}
	if !slices.Contains(places(), place) {
		return "", fmt.Errorf("{%s} is no variable", name)
	}
	a, err := s.Stage.Addr(place, six)
	return a.String(), err
}

// target reads place:port, place6:port or an address with a port.
func (p *player) target(text string) (netip.AddrPort, error) {
	i := strings.LastIndexByte(text, ':')
	if i < 0 {
		return netip.AddrPort{}, fmt.Errorf("%q has no port", text)
	}
	host := text[:i]
	if a, err := p.suite.addr(host); err == nil {
		host = a
	}
	port, err := strconv.ParseUint(text[i+1:], 10, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q has no port: %w", text, err)
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return netip.AddrPortFrom(ip, uint16(port)), err
}

// end finds a connection by name.
func (p *player) end(name string) (endpoint, error) {
	e, ok := p.ends[name]
	if !ok {
		return nil, fmt.Errorf("there is no connection %s", name)
	}
	return e, nil
}

// keep names a connection, which ends with the scenario.
func (p *player) keep(name string, e endpoint) error {
	if p.ends[name] != nil {
		return fmt.Errorf("there is a connection %s already", name)
	}
	p.ends[name] = e
	p.later(func() { e.close() })
	return nil
}

// pollEvery is the pause between two looks at something that changes.
const pollEvery = 20 * time.Millisecond

// eventually calls look until it is content or ctx ends, and then returns what
// was wrong at last.
func eventually(ctx context.Context, look func() error) error {
	for {
		err := look()
		if err == nil || errors.Is(err, ErrUnsupported) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("it did not come true in time; at last: %w", err)
		case <-time.After(pollEvery):
		}
	}
}

// echoServers run on the echo port of all pods and outside until ctx ends.
func (s *Suite) echoServers(ctx context.Context) error {
	for _, place := range append(pods(), "outside") {
		l, err := s.Stage.Listen(place, ":"+strconv.Itoa(echoPort))
		if err != nil {
			return err
		}
		s.serving.Go(func() { _ = serve.Echo(ctx, l) })
	}
	return nil
}
