// SPDX-License-Identifier: Apache-2.0

// Package top shows what a running proxy does now: open connections, rates,
// what policy refused and why connections end, DNS. It asks the proxy's own
// pages again and again and knows no more than they say; the difference of two
// answers is a rate.
//
// What is shown is made of samples by functions that know no terminal (view.go);
// the terminal is one file (screen.go), the only importer of its library.
package top

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// Config says what to ask, and how often.
type Config struct {
	// Admin and Stats return a page of the admin server and of the one for
	// metrics.
	Admin, Stats func(ctx context.Context, page string) ([]byte, error)
	// Place is where the proxy is, for people.
	Place string
	// Interval is the time between two samples; at least 100 ms.
	Interval time.Duration
}

// leastInterval keeps a slip of the finger from becoming a load.
const leastInterval = 100 * time.Millisecond

func (c Config) interval() time.Duration { return max(c.Interval, leastInterval) }

// Once prints everything there is to see, with the rates of one interval.
func Once(ctx context.Context, cfg Config, w io.Writer) error {
	before, err := take(ctx, cfg)
	if err != nil {
		return err
	}
	select {
	case <-time.After(cfg.interval()):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	now, err := take(ctx, cfg)
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, build(cfg.Place, before, now).text())
	return err
}

// A sample is what the pages say at one moment.
type sample struct {
	at     time.Time
	conns  []connection
	series []series
	pods   int // that are served
}

// A connection is one that is open.
type connection struct {
	pod, direction    string
	src, dst, service string
	protocol          string
	identity          string // whom the peer has proved to be
	opened            time.Time
}

// take asks all pages once.
func take(ctx context.Context, cfg Config) (sample, error) {
	s := sample{}
	live, err := cfg.Admin(ctx, "/debug/live")
	if err != nil {
		return s, err
	}
	names := map[string]string{}
	if pods, err := cfg.Admin(ctx, "/debug/pods"); err == nil { // dedicated mode has none
		if names, err = podNames(pods); err != nil {
			return s, err
		}
	}
	if s.conns, err = connections(live, names); err != nil {
		return s, err
	}
	text, err := cfg.Stats(ctx, "/metrics")
	if err != nil {
		return s, err
	}
	s.pods, s.at = len(names), time.Now()
	s.series, err = parse(text)
	return s, err
}

func podNames(page []byte) (map[string]string, error) {
	var pods []struct{ UID, Name, Namespace string }
	if err := json.Unmarshal(page, &pods); err != nil {
		return nil, fmt.Errorf("read /debug/pods: %w", err)
	}
	names := map[string]string{}
	for _, p := range pods {
		names[p.UID] = p.Namespace + "/" + p.Name
	}
	return names, nil
}

// connections reads /debug/live.
func connections(page []byte, names map[string]string) ([]connection, error) {
	type line struct {
		Src, OriginalDst, ActualDst, Service, Protocol, Identity string
		Opened                                                   time.Time
	}
	var pods map[string]struct{ Inbound, Outbound []line }
	if err := json.Unmarshal(page, &pods); err != nil {
		return nil, fmt.Errorf("read /debug/live: %w", err)
	}
	var all []connection
	for uid, p := range pods {
		pod := names[uid]
		if pod == "" {
			pod = uid
		}
		for _, l := range p.Inbound {
			all = append(all, connection{pod, "in", l.Src, l.ActualDst, l.Service, l.Protocol, l.Identity, l.Opened})
		}
		for _, l := range p.Outbound {
			c := connection{pod, "out", l.Src, l.OriginalDst, "", l.Protocol, "", l.Opened}
			if l.ActualDst != l.OriginalDst {
				c.dst += " via " + l.ActualDst
			}
			all = append(all, c)
		}
	}
	return all, nil
}
