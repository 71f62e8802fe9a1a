// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"crypto/tls"
	"syscall"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/record"
)

// BenchmarkHandshake is both sides' handshake over loopback, with what it costs
// of the processor. Run it with GODEBUG=fips140=on, as the binary is built.
func BenchmarkHandshake(b *testing.B) {
	r := newRig(b)
	for _, v := range []struct {
		name   string
		groups []tls.CurveID
	}{{"as configured", nil}, {"P-256", []tls.CurveID{tls.CurveP256}}} {
		b.Run(v.name, func(b *testing.B) {
			b.ReportAllocs()
			before := processorTime()
			for range b.N {
				near, far := loosePair(b)
				server, client := r.serverTLS(), r.clientTLS()
				if v.groups != nil {
					server.CurvePreferences, client.CurvePreferences = v.groups, v.groups
				}
				done := make(chan error, 1)
				go func() {
					_, err := record.Server(b.Context(), far, server)
					done <- err
				}()
				if _, err := record.Client(b.Context(), near, client); err != nil {
					b.Fatal(err)
				}
				if err := <-done; err != nil {
					b.Fatal(err)
				}
				near.Close()
				far.Close()
			}
			b.ReportMetric(float64((processorTime()-before).Microseconds())/float64(b.N), "cpu-µs/op")
		})
	}
}

func processorTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // of ourselves it cannot fail
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
