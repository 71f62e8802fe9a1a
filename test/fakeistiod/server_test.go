// SPDX-License-Identifier: Apache-2.0

package fakeistiod

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/ztunnel-go/ztunnel/test/leak"
	"github.com/ztunnel-go/ztunnel/xds/pb/discoverypb"
)

// dial opens a stream as a stock client does.
func dial(t *testing.T, s *Server) grpc.ClientStream {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(s.RootPEM())) {
		t.Fatal("no root")
	}
	conn, err := grpc.NewClient(s.Address()[len("https://"):], grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: pool})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true},
		"/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources")
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func say(t *testing.T, s grpc.ClientStream, req *discoverypb.DeltaDiscoveryRequest) {
	t.Helper()
	if err := s.SendMsg(req); err != nil {
		t.Fatal(err)
	}
}

func hear(t *testing.T, s grpc.ClientStream) (names, removed []string) {
	t.Helper()
	var r discoverypb.DeltaDiscoveryResponse
	if err := s.RecvMsg(&r); err != nil {
		t.Fatal(err)
	}
	for _, res := range r.GetResources() {
		names = append(names, res.GetName())
	}
	return names, r.GetRemovedResources()
}

func want(t *testing.T, s grpc.ClientStream, names, removed []string) {
	t.Helper()
	n, r := hear(t, s)
	if !slices.Equal(n, names) || !slices.Equal(r, removed) {
		t.Errorf("heard %q and %q gone, want %q and %q gone", n, r, names, removed)
	}
}

func TestAWorldIsServedWholeAndAsItChanges(t *testing.T) {
	leak.Check(t)
	s := Start(t, Options{})
	s.World.Put(Resource{Type: "t", Name: "a"}, Resource{Type: "t", Name: "b"}, Resource{Type: "u", Name: "c"})
	st := dial(t, s)
	say(t, st, &discoverypb.DeltaDiscoveryRequest{TypeUrl: "t", InitialResourceVersions: map[string]string{"gone": ""}})
	want(t, st, []string{"a", "b"}, []string{"gone"})
	s.World.Put(Resource{Type: "t", Name: "d"}, Resource{Type: "u", Name: "e"})
	want(t, st, []string{"d"}, nil)
	s.World.Remove("t", "a", "b")
	want(t, st, nil, []string{"a", "b"})
	if got := s.Requests(); len(got) != 1 || got[0].Stream != 1 || got[0].GetTypeUrl() != "t" {
		t.Errorf("requests %v", got)
	}
}

func TestAWorldIsServedByName(t *testing.T) {
	leak.Check(t)
	s := Start(t, Options{})
	s.World.Put(Resource{Type: "t", Name: "a", Aliases: []string{"other"}}, Resource{Type: "t", Name: "b"})
	st := dial(t, s)
	all := []string{"*"}
	say(t, st, &discoverypb.DeltaDiscoveryRequest{TypeUrl: "t", ResourceNamesSubscribe: all, ResourceNamesUnsubscribe: all})
	say(t, st, &discoverypb.DeltaDiscoveryRequest{TypeUrl: "t", ResourceNamesSubscribe: []string{"none", "other"}})
	want(t, st, []string{"a"}, []string{"none"})
	s.World.Put(Resource{Type: "t", Name: "b"}, Resource{Type: "t", Name: "a"})
	want(t, st, []string{"a"}, nil)
}

func TestTokensAreJudged(t *testing.T) {
	leak.Check(t)
	s := Start(t, Options{Token: func(string) error { return errors.New("expired") }})
	st := dial(t, s)
	err := st.RecvMsg(&discoverypb.DeltaDiscoveryResponse{})
	if status.Code(err) != codes.Unauthenticated {
		t.Errorf("got %v", err)
	}
}

func TestAScriptDecides(t *testing.T) {
	leak.Check(t)
	s := Start(t, Options{Script: func(st *Stream) error {
		if err := st.Greet(); err != nil {
			return err
		}
		_, err := st.Push("1", []Resource{{Type: "t", Name: "x", Bare: true}}, "y")
		return err
	}})
	st := dial(t, s)
	for range 3 {
		say(t, st, &discoverypb.DeltaDiscoveryRequest{TypeUrl: "t"})
	}
	want(t, st, []string{"x"}, []string{"y"})
	if err := st.RecvMsg(&discoverypb.DeltaDiscoveryResponse{}); !errors.Is(err, io.EOF) {
		t.Errorf("ended with %v", err)
	}
}

func TestARestartedServerIsWhereItWas(t *testing.T) {
	leak.Check(t)
	s := Start(t, Options{})
	s.World.Put(Resource{Type: "t", Name: "a"})
	address := s.Address()
	if err := s.Restart(); err != nil || s.Address() != address {
		t.Fatalf("at %s, %v", s.Address(), err)
	}
	st := dial(t, s)
	say(t, st, &discoverypb.DeltaDiscoveryRequest{TypeUrl: "t"})
	want(t, st, []string{"a"}, nil)
	s.Stop()
	s.Stop()
	if err := st.RecvMsg(&discoverypb.DeltaDiscoveryResponse{}); err == nil {
		t.Error("a stopped server goes on")
	}
}

func TestBulk(t *testing.T) {
	all := Bulk(50, 5)
	if len(all) != 55 || all[7].Name != BulkUID(7, 5) || all[53].Name != BulkService(3) {
		t.Errorf("%d resources: %s, %s", len(all), all[7].Name, all[53].Name)
	}
}
