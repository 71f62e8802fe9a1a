// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/ztunnel-go/ztunnel/test/rig"
)

// A scraped cell is measured twice through the proxy: undisturbed, which stands
// where others have what is plain, and while the metrics of both proxies are
// scraped, of which the client's has at least scrapeSeries.
const (
	scrapeSeries = 10_000
	scrapeEvery  = time.Second
)

// strangersOf makes series: connections to so many workloads that nobody
// reaches, of which each leaves four.
const strangersOf = 3_000

// strangers are the addresses of workloads that are known and not there.
func strangers() []netip.Addr {
	all := make([]netip.Addr, strangersOf)
	for i := range all {
		all[i] = netip.AddrFrom4([4]byte{10, 79, byte(i >> 8), byte(i)})
	}
	return all
}

// crowd has the client's proxy make its series.
func (b *bench) crowd(ctx context.Context) error {
	state := b.state()
	for i, a := range strangers() {
		w := rig.WorkloadOf(b.far, namespace)
		w.Name = fmt.Sprint("stranger-", i)
		w.UID, w.WorkloadName, w.CanonicalName, w.ServiceAccount = "lab//Pod/"+namespace+"/"+w.Name, w.Name, w.Name, w.Name
		w.IPs, w.Protocol = []netip.Addr{a}, "TCP"
		state.Workloads = append(state.Workloads, w)
	}
	if err := b.mesh.SetState(state); err != nil {
		return err
	}
	for deadline := time.Now().Add(2 * readyWait); ; {
		n, err := b.series(ctx, b.proxies[0])
		if err == nil && n >= scrapeSeries {
			return nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return errors.Join(fmt.Errorf("%d of %d series", n, scrapeSeries), err, ctx.Err())
		}
		b.knock(ctx) // those that the proxy does not know yet leave none
	}
}

// knock connects to every stranger once.
func (b *bench) knock(ctx context.Context) {
	work := make(chan netip.Addr)
	var knocking sync.WaitGroup
	const atOnce = 32
	for range atOnce {
		knocking.Go(func() {
			for a := range work {
				within, cancel := context.WithTimeout(ctx, time.Second)
				c, err := b.client.Dial(within, "tcp", netip.AddrPortFrom(a, portSmall).String())
				if err == nil { // by the proxy, which will reset it
					_ = c.SetDeadline(time.Now().Add(time.Second))
					_, _ = c.Read(make([]byte, 1))
					c.Close()
				}
				cancel()
			}
		})
	}
	for _, a := range strangers() {
		work <- a
	}
	close(work)
	knocking.Wait()
}

// series is how many a scrape of a proxy has.
func (b *bench) series(ctx context.Context, p *rig.Proxy) (int, error) {
	status, page, err := p.Get(ctx, "15020/metrics")
	if err == nil && status != 200 {
		err = fmt.Errorf("a scrape answers %d", status)
	}
	n := 0
	for line := range strings.Lines(page) {
		if !strings.HasPrefix(line, "#") {
			n++
		}
	}
	return n, err
}

// takeScraped measures a cell without and with scrapes.
func (b *bench) takeScraped(ctx context.Context, c cell) ([]sample, error) {
	if err := b.crowd(ctx); err != nil {
		return nil, err
	}
	calm, err := b.takeRate(ctx, c, b.client, c.to.IPv4)
	if err != nil {
		return nil, err
	}
	calm.Who = plainName
	within, stop := context.WithCancel(ctx)
	defer stop()
	failed := make(chan error, 1)
	go func() { failed <- b.scrape(within) }()
	s, err := b.takeRate(ctx, c, b.client, c.to.IPv4)
	stop()
	return []sample{calm, s}, errors.Join(err, <-failed)
}

// scrape asks both proxies for their metrics until ctx ends.
func (b *bench) scrape(ctx context.Context) error {
	tick := time.NewTicker(scrapeEvery)
	defer tick.Stop()
	for {
		for i, p := range b.proxies {
			n, err := b.series(ctx, p)
			if ctx.Err() != nil {
				return nil
			}
			if err == nil && i == 0 && n < scrapeSeries {
				err = fmt.Errorf("a scrape has %d series only", n)
			}
			if err != nil {
				return err
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}
