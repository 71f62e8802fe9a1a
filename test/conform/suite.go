// SPDX-License-Identifier: Apache-2.0

package conform

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ztunnel-go/ztunnel/test/fakeistiod"
)

// A Suite plays scenarios on a stage. Its fields are set before [Suite.Run] and
// not changed after.
type Suite struct {
	Stage Stage
	// Patience bounds each step.
	Patience time.Duration
	// Report is told of each scenario when it is over. It may be nil.
	Report func(Result)

	control *fakeistiod.Server
	pushed  map[string]fakeistiod.Resource // what the control plane serves, but for marks
	states  int                            // marks so far
	serving sync.WaitGroup                 // servers; end with the context of Run
	groups  int
}

// A Result is what became of a scenario.
type Result struct {
	Script *Script
	// Err is nil for a scenario that passed, [ErrUnsupported] for one that the
	// stage cannot play, else what was seen instead.
	Err error
	// Logs are what the proxies printed, if it failed.
	Logs string
	// Took is how long it ran.
	Took time.Duration
}

// Run plays all scripts and returns what became of them, in the order played:
// those of one environment after another. The error is of the suite itself.
func (s *Suite) Run(ctx context.Context, scripts []*Script) (results []Result, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer s.serving.Wait()
	defer cancel()
	if err := s.serveControl(); err != nil {
		return nil, err
	}
	defer s.control.Stop()
	if err := s.echoServers(ctx); err != nil {
		return nil, err
	}
	for _, members := range groupsOf(scripts) {
		if ctx.Err() != nil {
			return results, ctx.Err()
		}
		results = append(results, s.playGroup(ctx, members)...)
	}
	return results, nil
}

func (s *Suite) serveControl() error {
	at := s.Stage.Control()
	err := s.Stage.Inside("outside", func() (err error) {
		s.control, err = fakeistiod.New(fakeistiod.Options{Address: at.String(), Hosts: []string{at.Addr().String()}})
		return err
	})
	if err != nil {
		return err
	}
	s.pushed = map[string]fakeistiod.Resource{}
	return os.WriteFile(s.rootFile(), []byte(s.control.RootPEM()), 0o600)
}

func (s *Suite) rootFile() string { return filepath.Join(s.Stage.Dir(), "control-root.pem") }

// groupsOf puts scenarios together that can share their proxies.
func groupsOf(scripts []*Script) [][]*Script {
	byKey := map[string][]*Script{}
	var order []string
	for i, s := range scripts {
		key := fmt.Sprint(s.env, s.nodes)
		if s.fresh || s.local {
			key = fmt.Sprint(i)
		}
		if byKey[key] == nil {
			order = append(order, key)
		}
		byKey[key] = append(byKey[key], s)
	}
	groups := make([][]*Script, 0, len(order))
	for _, key := range order {
		groups = append(groups, byKey[key])
	}
	slices.SortStableFunc(groups, func(a, b []*Script) int { return cmp.Compare(len(b), len(a)) })
	return groups
}

// playGroup starts the proxies that members want, and plays them one after
// another. A failure may leave proxies in a state that nobody knows, so the
// next member gets new ones.
func (s *Suite) playGroup(ctx context.Context, members []*Script) []Result {
	var results []Result
	var g *group
	defer func() {
		if g != nil {
			g.close()
		}
	}()
	for _, m := range members {
		began := time.Now()
		var err error
		if g == nil {
			g, err = s.start(ctx, m)
		}
		if err == nil {
			err = newPlayer(g, m).play(ctx)
		}
		r := Result{Script: m, Err: err, Took: time.Since(began)}
		if err != nil {
			r.Logs = g.logs()
			g.close()
			g = nil
		}
		if errors.Is(err, ErrUnsupported) {
			r.Err, r.Logs = ErrUnsupported, ""
		}
		results = append(results, r)
		if s.Report != nil {
			s.Report(r)
		}
	}
	return results
}

// A group is proxies with one environment, for the scenarios that want it.
type group struct {
	suite   *Suite
	script  *Script // the one that it was started for
	running map[string]Proxy
	agents  map[string]*agent
	env     map[string]string
	number  int
}

// start starts what a scenario wants and waits until it is ready. The group is
// there also with an error.
func (s *Suite) start(ctx context.Context, m *Script) (*group, error) {
	s.groups++
	g := &group{suite: s, script: m, running: map[string]Proxy{}, agents: map[string]*agent{}, env: map[string]string{}, number: s.groups}
	ctx, cancel := context.WithTimeout(ctx, s.Patience)
	defer cancel()
	if len(m.nodes) == 0 {
		return g, nil
	}
	if !m.local {
		if err := s.push(&State{}); err != nil {
			return g, err
		}
	}
	for _, node := range m.nodes {
		if err := g.startNode(node); err != nil {
			return g, fmt.Errorf("start %s: %w", node, err)
		}
	}
	if m.agent == "script" {
		return g, nil
	}
	for _, node := range m.nodes {
		if err := g.ready(ctx, node); err != nil {
			return g, fmt.Errorf("start %s: %w", node, err)
		}
	}
	return g, nil
}

// socket is where a node's agent listens. Each group has its own.
func (g *group) socket(node string) string {
	return filepath.Join(g.suite.Stage.Dir(), fmt.Sprintf("%s-%d.sock", node, g.number))
}

func (g *group) startNode(node string) error {
	if g.script.agent != "script" && g.agents[node] == nil {
		a, err := g.startAgent(node)
		if err != nil {
			return err
		}
		g.agents[node] = a
	}
	env, err := g.environment(node)
	if err != nil {
		return err
	}
	p, err := g.suite.Stage.Start(Start{Node: node, Env: env, Args: []string{"proxy", "ztunnel"}})
	if err != nil {
		return err
	}
	g.running[node] = p
	return nil
}

// environment is what every proxy is given, and what the scenario changes.
func (g *group) environment(node string) (map[string]string, error) {
	s := g.suite
	env := map[string]string{
		"NODE_NAME": node, "XDS_ADDRESS": s.control.Address(), "XDS_ROOT_CA": s.rootFile(), "INPOD_UDS": g.socket(node), "HANDOVER_SOCK": "",
		"FAKE_CA": "true", "EMBEDDED_CA_DIR": s.caDir("mesh"),
	}
	for name, value := range g.script.env {
		v, err := s.expandPlaces(value)
		if err != nil {
			return nil, err
		}
		env[name] = v
	}
	if g.script.local {
		text, err := s.expandPlaces(g.script.state.text)
		if err != nil {
			return nil, err
		}
		path := filepath.Join(s.Stage.Dir(), fmt.Sprintf("local-%d.yaml", g.number))
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return nil, err
		}
		env["XDS_ADDRESS"], env["LOCAL_XDS_PATH"] = "", path
	}
	return env, nil
}

// caDir is where an authority keeps its root and key; the proxies' is "mesh".
func (s *Suite) caDir(name string) string { return filepath.Join(s.Stage.Dir(), "ca-"+name) }

func (s *Suite) expandPlaces(text string) (string, error) {
	var failed error
	out := variable.ReplaceAllStringFunc(text, func(v string) string {
		value, err := s.addr(strings.Trim(v, "{}"))
		failed = cmp.Or(failed, err)
		return value
	})
	return out, failed
}

// logs is the end of what the proxies printed.
func (g *group) logs() string {
	if g == nil {
		return ""
	}
	const enough = 60
	var b strings.Builder
	for _, node := range slices.Sorted(maps.Keys(g.running)) {
		for name, out := range map[string][]string{"": g.running[node].Output().Lines(0), " (stderr)": g.running[node].Errors().Lines(0)} {
			for _, line := range out[max(0, len(out)-enough):] {
				if strings.Contains(line, "running with config") {
					continue
				}
				fmt.Fprintf(&b, "%s%s: %s\n", node, name, line)
			}
		}
	}
	return b.String()
}

func (g *group) close() {
	for _, p := range g.running {
		p.Close()
	}
	for _, a := range g.agents {
		a.close()
	}
}
