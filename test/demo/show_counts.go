// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/ztunnel-go/ztunnel/test/rig"
)

// showCounts compares what the proxies have counted with the ledger: every
// series of the traffic families, and no other. It must come last.
func (d *demo) showCounts(ctx context.Context) {
	for _, p := range d.proxies {
		d.table.check("connections and bytes of "+p.Node().Name()+" are exact", func() (string, error) {
			return d.exact(ctx, p, trafficFamilies(), trafficLabels())
		})
	}
	p := d.proxies[0]
	d.table.check("DNS queries of "+p.Node().Name()+" are exact", func() (string, error) {
		return d.exact(ctx, p, dnsFamilies(), dnsLabels())
	})
}

// exact waits until the node's counts are the ledger's: the last connection's
// end may reach the proxy after the client.
func (d *demo) exact(ctx context.Context, p *rig.Proxy, families, labels []string) (string, error) {
	want := d.ledger.total()
	maps.DeleteFunc(want, func(s series, _ int64) bool {
		return s.node != p.Node().Name() || !slices.Contains(families, s.name)
	})
	ctx, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	for {
		text, err := page(ctx, p, statsPage+"/metrics")
		if err != nil {
			return "", err
		}
		got, err := parseScrape(p.Node().Name(), text, families, labels)
		if err != nil {
			return "", err
		}
		diff := differences(want, got)
		if len(diff) == 0 {
			return sums(got, families), nil
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("%d of %d series differ:\n%s", len(diff), len(want), strings.Join(diff, "\n"))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// sums tells the totals of the families.
func sums(got map[series]int64, families []string) string {
	total := map[string]int64{}
	for s, n := range got {
		total[s.name] += n
	}
	var out []string
	for _, f := range families {
		out = append(out, fmt.Sprintf("%s %d", strings.TrimSuffix(strings.TrimPrefix(f, "istio_"), "_total"), total[f]))
	}
	return fmt.Sprintf("%d series; %s", len(got), strings.Join(out, ", "))
}
