// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/ztunnel-go/ztunnel/cmd/zagent/cni"
	"github.com/ztunnel-go/ztunnel/cmd/zagent/roster"
	"github.com/ztunnel-go/ztunnel/internal/netns"
)

// pages are what the agent shows: whether it lives, whether it is ready, its
// metrics, and the list of pods.
func pages(list *roster.Roster, plugins *cniCounts, ready func() bool) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(&collector{list, plugins}) // its names are our own
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !ready() {
			http.Error(w, "the Kubernetes API has not been heard yet", http.StatusServiceUnavailable)
			return
		}
		w.Write([]byte("ok\n"))
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /debug/pods", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		_ = e.Encode(podLines(list.All())) // strings and numbers; a client that is gone
	})
	return mux
}

// A podLine is one pod on /debug/pods.
type podLine struct {
	UID       string `json:"uid"`
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	State     string `json:"state"`
	Late      bool   `json:"late,omitempty"`
	Netns     uint64 `json:"netns,omitempty"` // inode
	Error     string `json:"error,omitempty"`
}

func podLines(all []roster.Status) []podLine {
	lines := make([]podLine, len(all))
	for i, s := range all {
		lines[i] = podLine{UID: s.Pod.UID, Name: s.Pod.Name, Namespace: s.Pod.Namespace, State: string(s.State), Late: s.Pod.Late, Netns: s.Inode}
		if s.Err != nil {
			lines[i].Error = s.Err.Error()
		}
	}
	return lines
}

// cniCounts counts what plugins have asked.
type cniCounts struct {
	mu     sync.Mutex
	counts map[roster.Count]uint64 // guarded by mu
}

func (c *cniCounts) count(fn cni.ServeFunc) cni.ServeFunc {
	return func(ctx context.Context, req cni.Request, ns *netns.NS) error {
		err := fn(ctx, req, ns)
		result := "ok"
		if err != nil {
			result = "error"
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.counts == nil {
			c.counts = map[roster.Count]uint64{}
		}
		c.counts[roster.Count{Request: string(req.Op), Result: result}]++
		return err
	}
}

func (c *cniCounts) read() map[roster.Count]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.counts)
}

// A collector asks for numbers when they are scraped.
type collector struct {
	list    *roster.Roster
	plugins *cniCounts
}

func (c *collector) descs() (pods, proxies, requests, plugins *prometheus.Desc) {
	return prometheus.NewDesc("zagent_pods", "The number of pods that are to be captured, by state.", []string{"state"}, nil),
		prometheus.NewDesc("zagent_proxies_connected", "The number of proxies that are connected.", nil, nil),
		prometheus.NewDesc("zagent_requests_total", "The total number of requests to proxies, by how they ended.", []string{"request", "result"}, nil),
		prometheus.NewDesc("zagent_cni_requests_total", "The total number of requests of the CNI plugin, by how they ended.", []string{"command", "result"}, nil)
}

// Describe is for the registry.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	pods, proxies, requests, plugins := c.descs()
	ch <- pods
	ch <- proxies
	ch <- requests
	ch <- plugins
}

// Collect is for a scrape.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	pods, proxies, requests, plugins := c.descs()
	states := map[roster.State]int{roster.Waiting: 0, roster.Served: 0, roster.Refused: 0, roster.Unknown: 0}
	for _, s := range c.list.All() {
		states[s.State]++
	}
	for state, n := range states {
		ch <- prometheus.MustNewConstMetric(pods, prometheus.GaugeValue, float64(n), string(state))
	}
	ch <- prometheus.MustNewConstMetric(proxies, prometheus.GaugeValue, float64(c.list.Proxies()))
	for k, n := range c.list.Counts() {
		ch <- prometheus.MustNewConstMetric(requests, prometheus.CounterValue, float64(n), k.Request, k.Result)
	}
	for k, n := range c.plugins.read() {
		ch <- prometheus.MustNewConstMetric(plugins, prometheus.CounterValue, float64(n), k.Request, k.Result)
	}
}
