// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/ztunnel-go/ztunnel/test/rig"
)

// showNodes asks the proxies about themselves.
func (d *demo) showNodes(ctx context.Context) {
	d.table.check("both proxies are ready, their pods enrolled", func() (string, error) { return d.ready(ctx) })
	d.table.check("their pods are captured by eBPF", func() (string, error) { return d.captured(ctx) })
	d.table.check("config_dump lists the mesh and the certificates", func() (string, error) { return d.dumped(ctx) })
	d.table.check("/debug/route explains a decision", func() (string, error) { return d.explained(ctx) })
}

func (d *demo) ready(ctx context.Context) (string, error) {
	var saw []string
	for _, p := range d.proxies {
		text, err := page(ctx, p, rig.ReadyPage)
		if err != nil {
			return "", err
		}
		saw = append(saw, fmt.Sprintf("%s: 200 %s", p.Node().Name(), strings.TrimSpace(text)))
	}
	return strings.Join(saw, ", "), nil
}

func (d *demo) captured(ctx context.Context) (string, error) {
	var saw []string
	for _, p := range d.proxies {
		text, err := page(ctx, p, adminPage+"/debug/pods")
		if err != nil {
			return "", err
		}
		var pods []struct{ Name, State, Capture string }
		if err := json.Unmarshal([]byte(text), &pods); err != nil {
			return "", err
		}
		for _, pod := range pods {
			if pod.Capture != "ebpf" || pod.State != "Up" {
				return "", fmt.Errorf("%s says %+v", p.Node().Name(), pod)
			}
			saw = append(saw, pod.Name)
		}
	}
	slices.Sort(saw)
	if want := []string{"client", "guest", "server"}; !slices.Equal(saw, want) {
		return "", fmt.Errorf("enrolled are %v, want %v", saw, want)
	}
	return strings.Join(saw, ", "), nil
}

// A dump is what the demo reads of config_dump.
type dump struct {
	Workloads    []struct{ Name string }
	Services     []struct{ Hostname string }
	Certificates []struct{ Identity, State string }
}

func dumpOf(ctx context.Context, p *rig.Proxy) (*dump, error) {
	text, err := page(ctx, p, adminPage+"/config_dump")
	if err != nil {
		return nil, err
	}
	var out dump
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		return nil, fmt.Errorf("config_dump of %s: %w", p.Node().Name(), err)
	}
	return &out, nil
}

func (d *demo) dumped(ctx context.Context) (string, error) {
	var saw []string
	for _, p := range d.proxies {
		got, err := dumpOf(ctx, p)
		if err != nil {
			return "", err
		}
		there := map[string]bool{}
		for _, w := range got.Workloads {
			there[w.Name] = true
		}
		for _, s := range got.Services {
			there[s.Hostname] = true
		}
		for _, c := range got.Certificates {
			there[c.Identity+" "+c.State] = true
		}
		want := []string{"client", "server", "guest", "legacy", serverName, legacyName}
		for _, pod := range d.pods() {
			if pod.captured && pod.node == p.Node().Name() {
				want = append(want, principal(pod.Name())+" Available")
			}
		}
		for _, w := range want {
			if !there[w] {
				return "", fmt.Errorf("%s has no %q, but %v", p.Node().Name(), w, slices.Sorted(maps.Keys(there)))
			}
		}
		saw = append(saw, fmt.Sprintf("%s: %d workloads, %d services, %d certificates",
			p.Node().Name(), len(got.Workloads), len(got.Services), len(got.Certificates)))
	}
	return strings.Join(saw, "\n"), nil
}

func (d *demo) explained(ctx context.Context) (string, error) {
	path := fmt.Sprintf("/debug/route?src=%v&dst=%v:%d", d.client.IPv4, fixed().server4, portWeb)
	text, err := page(ctx, d.proxies[0], adminPage+path)
	if err != nil {
		return "", err
	}
	for _, want := range []string{serverName, principal("server"), d.server.Addr(portTunnel).String()} {
		if !strings.Contains(text, want) {
			return "", errors.New("no word of " + want + " in:\n" + text)
		}
	}
	steps, _, _ := strings.Cut(text, "\noutcome:") // what follows says the same in fields
	return steps, nil
}
