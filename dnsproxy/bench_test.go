// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// benchQuestions are what is measured. A byte after a query, which means
// nothing, sends it the long way.
func benchQuestions(b *testing.B) map[string][]byte {
	edns := question("svc-500.ns1.svc.cluster.local", dns.TypeA)
	edns.SetEdns0(1232, false)
	out := map[string][]byte{}
	for name, q := range map[string]*dns.Msg{
		"mesh":      question("svc-500.ns1.svc.cluster.local", dns.TypeA),
		"mesh-edns": edns,
		"mesh-aaaa": question("svc-500.ns1.svc.cluster.local", dns.TypeAAAA),
		"cached":    question("www.example.org", dns.TypeA),
		"nxdomain":  question("www.example.org.ns1.svc.cluster.local", dns.TypeA),
	} {
		packet, err := q.Pack()
		if err != nil {
			b.Fatal(err)
		}
		out[name] = packet
	}
	for _, name := range []string{"mesh", "cached"} {
		out[name+"-long-way"] = append(slices.Clone(out[name]), 0)
	}
	return out
}

// cpu is the time on CPUs of this process.
func cpu(b *testing.B) time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

func benchServer(b *testing.B) *Server {
	var services []*mesh.Service
	for i := range 1000 {
		services = append(services, service(fmt.Sprintf("ns1/svc-%d.ns1.svc.cluster.local", i), fmt.Sprintf("10.96.%d.%d", i/250, i%250+1)))
	}
	up := fakeUpstream(b, world)
	view := store(services).View()
	s := New(Config{
		View: view, Client: knownClient, Upstream: up.config(), Dial: dial, IPv6: true,
		Metrics: NewMetrics(prometheus.NewRegistry()),
	})
	b.Cleanup(s.Close)
	return s
}

// BenchmarkUDP is questions over real sockets of this machine, from 16 clients
// that wait for each answer, in this process.
func BenchmarkUDP(b *testing.B) {
	for name, packet := range benchQuestions(b) {
		b.Run(name, func(b *testing.B) {
			s := benchServer(b)
			pc, err := net.ListenPacket("udp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			if err := s.Serve([]net.PacketConn{pc}, nil); err != nil {
				b.Fatal(err)
			}
			b.SetParallelism(8)
			b.ReportAllocs()
			before := cpu(b)
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				c, err := net.Dial("udp", pc.LocalAddr().String())
				if err != nil {
					b.Error(err)
					return
				}
				defer c.Close()
				answer := make([]byte, 4096)
				for pb.Next() {
					if _, err := c.Write(packet); err != nil {
						b.Error(err)
						return
					}
					if _, err := c.Read(answer); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "queries/s")
			b.ReportMetric(float64(cpu(b)-before)/float64(b.N), "cpu-ns/op")
		})
	}
}

// BenchmarkHandle is the same without sockets.
func BenchmarkHandle(b *testing.B) {
	for name, packet := range benchQuestions(b) {
		b.Run(name, func(b *testing.B) {
			s := benchServer(b)
			b.ReportAllocs()
			for b.Loop() {
				if s.handle(s.ctx, packet, "udp") == nil {
					b.Fatal("no answer")
				}
			}
		})
	}
}

// BenchmarkQuick is what of them takes the short way.
func BenchmarkQuick(b *testing.B) {
	for name, packet := range benchQuestions(b) {
		b.Run(name, func(b *testing.B) {
			s := benchServer(b)
			s.handle(s.ctx, packet, "udp")
			var w scratch
			if s.quick(packet, &w) == nil {
				return // that is what it is for
			}
			b.ReportAllocs()
			for b.Loop() {
				if s.quick(packet, &w) == nil {
					b.Fatal("no answer")
				}
			}
		})
	}
}
