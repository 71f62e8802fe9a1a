// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/ztunnel-go/ztunnel/test/netlab"
)

// A cell is one load, through the proxy and beside it.
type cell struct {
	name    string
	unit    string
	per     float64 // operations (or bytes) of one unit
	job     job
	to      *netlab.Pod // from client
	plain   *netlab.Pod // from plain; nil: there is nothing to compare with
	at      netip.Addr  // instead of the pod's address, from client
	scraped bool        // see takeScraped
}

// cells are everything, in order. Idle connections come first, in processes
// that have done nothing yet; new tunnels last, since they stay.
func (b *bench) cells() []cell {
	all := []cell{{
		name: "idle connection", unit: "KiB", per: 1 << 10, to: b.far,
		job: job{Kind: idle, To: portOf(portIdle), Size: b.idle},
	}, {
		name: "idle tunnel with one", unit: "KiB", per: 1 << 10, to: b.far,
		job: job{Kind: idle, To: portOf(portIdle), Size: b.idle / 4, From: half(0)},
	}}
	for _, path := range []struct {
		name      string
		to, plain *netlab.Pod
	}{{"cross-node", b.far, b.beyond}, {"same-node", b.near, b.beside}} {
		for _, c := range loads() {
			c.name, c.to, c.plain = path.name+" "+c.name, path.to, path.plain
			all = append(all, c)
		}
	}
	for _, n := range []int{1, 8} {
		c := throughput(n)
		c.name, c.to, c.plain = "passthrough "+c.name, b.beyond, b.beyond
		all = append(all, c)
	}
	for _, n := range []int{1, 16} {
		all = append(all, cell{
			name: fmt.Sprintf("DNS query, %d", n), unit: "k/s", per: 1000, to: b.far, plain: b.beyond, at: resolver(),
			job: job{Kind: names, To: portOf(portDNS), Threads: n, Name: farName},
		})
	}
	for _, n := range []int{1, 32} {
		all = append(all, cell{
			name: fmt.Sprintf("scraped each second, beside unscraped, round trip of 64 B, %d", n), unit: "k/s", per: 1000, to: b.far, scraped: true,
			job: job{Kind: trips, To: portOf(portSmall), Threads: n, Size: smallSize},
		})
	}
	return append(all, cell{
		name: "new tunnel and request, 8", unit: "k/s", per: 1000, to: b.far, plain: b.beyond,
		job: job{Kind: once, To: portOf(portOnce), Threads: 8, Size: smallSize, From: half(1)},
	})
}

// portOf is a destination of which the address is not known yet.
func portOf(port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.IPv4Unspecified(), port) }

// bulkSize is what a sender gives to one system call. Larger ones no longer fit
// the processor's nearer caches, and sendfile(2) from memory was no faster.
const bulkSize = 64 << 10

func throughput(connections int) cell {
	return cell{
		name: fmt.Sprintf("throughput, %d", connections), unit: "Gbit/s", per: 1e9 / 8,
		job: job{Kind: bulk, To: portOf(portSink), Threads: connections, Size: bulkSize},
	}
}

func loads() []cell {
	all := []cell{throughput(1), throughput(8)}
	for _, size := range []struct {
		name  string
		bytes int
		port  uint16
	}{{"64 B", smallSize, portSmall}, {"16 KiB", largeSize, portLarge}} {
		for _, n := range []int{1, 32} {
			all = append(all, cell{
				name: fmt.Sprintf("round trip of %s, %d", size.name, n), unit: "k/s", per: 1000,
				job: job{Kind: trips, To: portOf(size.port), Threads: n, Size: size.bytes},
			})
		}
	}
	for _, n := range []int{1, 16} {
		all = append(all, cell{
			name: fmt.Sprintf("connect, request, close, %d", n), unit: "k/s", per: 1000,
			job: job{Kind: once, To: portOf(portOnce), Threads: n, Size: smallSize},
		})
	}
	return all
}

// plainName is whom a measurement without proxy is of.
const plainName = "plain"

// A sample is one measurement.
type sample struct {
	Who  string  `json:"who"`  // ours, peer, or plain
	In   string  `json:"in"`   // whose lab it was taken in
	Rate float64 `json:"rate"` // in the cell's unit
	// P50 and P99 are microseconds of one operation; 0 if there is no such thing.
	P50 float64 `json:"p50,omitempty"`
	P99 float64 `json:"p99,omitempty"`
	// CPU is microseconds of both proxies for one operation, or for a MiB.
	CPU float64 `json:"cpu,omitempty"`
	// Heap is KiB for one idle connection; Rate is resident memory then.
	Heap float64 `json:"heap,omitempty"`
}

// take measures a cell, plain first.
func (b *bench) take(ctx context.Context, c cell) ([]sample, error) {
	if c.job.Kind == idle {
		s, err := b.takeIdle(ctx, c)
		return []sample{s}, err
	}
	if c.scraped {
		return b.takeScraped(ctx, c)
	}
	plain, err := b.takeRate(ctx, c, b.plain, c.plain.IPv4)
	if err != nil {
		return nil, fmt.Errorf("plain: %w", err)
	}
	to := c.to.IPv4
	if c.at.IsValid() {
		to = c.at
	}
	s, err := b.takeRate(ctx, c, b.client, to)
	return []sample{plain, s}, err
}

// cpu is what both proxies have used.
func (b *bench) cpu() (sum time.Duration, err error) {
	for _, p := range b.proxies {
		t, err := cpuTime(p.Pid())
		if err != nil {
			return 0, err
		}
		sum += t
	}
	return sum, nil
}

func (b *bench) takeRate(ctx context.Context, c cell, from *netlab.Pod, to netip.Addr) (sample, error) {
	s := sample{Who: b.Name, In: b.Name}
	j := c.job
	j.To, j.Duration = netip.AddrPortFrom(to, j.To.Port()), b.duration
	if from == b.plain {
		s.Who, j.From = plainName, netip.Prefix{}
	}
	var before, after time.Duration
	o, err := load(ctx, from, j,
		func() (err error) { before, err = b.cpu(); return err },
		func() (err error) { after, err = b.cpu(); return err })
	if err != nil {
		return s, err
	}
	if o.Ops == 0 {
		return s, fmt.Errorf("nothing was done in %v", b.duration)
	}
	s.Rate = float64(o.Ops) / c.per / time.Duration(o.Nanos).Seconds()
	s.P50, s.P99 = float64(o.P50)/1000, float64(o.P99)/1000
	if from != b.plain {
		units := float64(o.Ops)
		if j.Kind == bulk {
			units /= 1 << 20
		}
		s.CPU = float64((after - before).Microseconds()) / units
	}
	return s, nil
}

// settle is how long memory is left alone before it is looked at.
const settle = time.Second

func (b *bench) takeIdle(ctx context.Context, c cell) (sample, error) {
	s := sample{Who: b.Name, In: b.Name}
	j := c.job
	j.To = netip.AddrPortFrom(c.to.IPv4, j.To.Port())
	var before, after memory
	look := func(m *memory) func() error {
		return func() (err error) {
			time.Sleep(settle)
			*m, err = memoryOf(ctx, b.proxies)
			return err
		}
	}
	o, err := load(ctx, b.client, j, look(&before), func() error {
		err := look(&after)()
		if dir := b.profiles; dir != "" && err == nil {
			err = b.profile(ctx, dir, c.name)
		}
		return err
	})
	if err != nil {
		return s, err
	}
	s.Rate = float64(after.Resident-before.Resident) / c.per / float64(o.Ops)
	s.Heap = float64(after.Heap-before.Heap) / c.per / float64(o.Ops)
	return s, nil
}
