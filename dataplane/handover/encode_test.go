// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/ztunnel-go/ztunnel/dataplane/engine"
	pb "github.com/ztunnel-go/ztunnel/dataplane/handover/handoverpb"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone/record"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
	"github.com/ztunnel-go/ztunnel/dataplane/live"
	"github.com/ztunnel-go/ztunnel/dataplane/relay"
	"github.com/ztunnel-go/ztunnel/dataplane/report"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/internal/sock"
)

func parse(s string) identity.ID {
	id, err := identity.Parse(s)
	if err != nil {
		panic(err)
	}
	return id
}

func secret(b byte) (s [record.MaxSecret]byte) {
	for n := range s {
		s[n] = b
	}
	return s
}

// sample is a lot with something in every field: a tunnel that a peer made, and
// one of ours.
func sample() []*Tunnel {
	addr := netip.MustParseAddrPort
	client, server := parse("spiffe://cluster.local/ns/a/sa/client"), parse("spiffe://cluster.local/ns/b/sa/server")
	workload := &mesh.Workload{
		UID: "k//Pod/b/server-0", Name: "server-0", Namespace: "b", TrustDomain: "cluster.local", ServiceAccount: "server",
		WorkloadName: "server", CanonicalName: "srv", CanonicalRevision: "v1", ClusterID: "k",
		Locality: mesh.Locality{Region: "r", Zone: "z", Subzone: "s"},
	}
	baggage := &report.Baggage{Cluster: "k", Namespace: "a", WorkloadType: 1, Workload: "w", Service: "s", Revision: "v", Region: "r", Zone: "z"}
	end := func(how relay.Ending) relay.End {
		return relay.End{How: how, Seen: true, TCP: sock.TCPInfo{SRTT: time.Millisecond, MinRTT: 3, Retransmits: 4, Lost: 5}}
	}
	img := func(isClient bool) *engine.Image {
		return &engine.Image{
			Client: isClient, Limit: 100,
			Settings: wire.Settings{StreamWindow: 1, ConnWindow: 2, MaxFrameSize: 3, MaxHeaderList: 4, MaxStreams: 5, PingInterval: 6, PingTimeout: 7, HandshakeTimeout: 8},
			In: record.ReceiverState{State: record.State{Suite: tls.TLS_AES_128_GCM_SHA256, Secret: secret(0xa1), Seq: 77},
				Client: isClient, Header: [4]byte{24, 0, 0, 0}, HeaderN: 3, Useless: 2},
			Out:   record.State{Suite: tls.TLS_AES_256_GCM_SHA384, Secret: secret(0xb2), Seq: 78},
			Asked: true, Owes: true,
			Part: []byte("part"), Unsent: []byte("unsent"), Later: []byte("later"),
			Frame: engine.FrameImage{Begun: true, Head: []byte{0, 0, 9, 1, 0, 0, 0, 0, 5}, Left: 7, Pad: 1, PadKnown: true, Data: 3,
				Payload: []byte("xy"), Block: []byte("block"), BlockID: 5, BlockN: 2, BlockEnd: true, Sink: true,
				Fault: &engine.FaultImage{ID: 5, Code: 1, Why: "because"}},
			HPACK:   wire.Decoder{Table: []wire.Field{{Name: "a", Value: "bc"}}, Size: 35, Less: 100},
			Leaving: true, Draining: 2, LastPeer: 5, Refuse: 6, NextID: 7, PeerWindow: 8, PeerSettings: true, Acknowledged: true,
			SendWindow: 9, RecvWindow: 10, Uncredited: 11, Budget: wire.Budget{Left: 12, Last: 13}, Provoked: 14,
			SettingsDue: 15, PingDue: 16, PingWaits: true, GoAway: &wire.GoAwayError{Code: 2, Remote: true, Reason: "why"},
			Streams: []engine.StreamImage{
				{ID: 3, Closed: true, Deaf: true, Interim: 1, ReadErr: &engine.ErrorImage{Text: "r", Quiet: true}, WriteErr: &engine.ErrorImage{Text: "w", Clean: true}},
				{ID: 5, SendWindow: 17, RecvWindow: 18, Uncredited: 19, Opened: 20, Responded: true, RecvEnded: true, EndSent: true, Queue: []byte("queue"),
					Joint: &engine.JointImage{FD: 1, Client: isClient, InOver: true, OutOver: true, Dark: true, Broken: true, LingerDue: 21, Cause: &engine.ErrorImage{Text: "c"}}},
			},
		}
	}
	params := report.Params{
		Reporter: report.Destination, Src: addr("10.0.0.1:1"), Dst: addr("10.0.0.2:15008"), HBONEAddr: "10.0.0.2:80",
		Source: workload, SourceBaggage: baggage, Destination: workload, DestinationBaggage: baggage,
		Service:   &mesh.Service{Namespace: "b", Name: "s", Hostname: "s.b.svc"},
		MutualTLS: true, SourceIdentity: client, DestinationIdentity: server,
	}
	in := img(false)
	in.Past = wire.PastState{Ended: make([]uint32, 16), Skipped: make([]uint32, 16)}
	in.Past.Ended[3], in.Past.Skipped[4] = 0x80000001, 2
	ends := &relay.EndsState{First: relay.Client, Client: end(relay.FIN), Upstream: end(relay.Open)}
	return []*Tunnel{
		{
			Image: in, FDs: []int{-1, -1}, Local: addr("10.0.0.2:15008"), Remote: addr("10.0.0.1:4"),
			Server: &Server{Peer: addr("10.0.0.1:4"), Dst: addr("10.0.0.2:15008"), Identity: client},
			Chains: [][][]byte{{[]byte("leaf"), []byte("root")}},
			Connections: map[uint32]*Connection{5: {
				Report:  report.Past{Params: params, Opened: time.Now().Add(-time.Minute), Sent: 22, Received: 23},
				Inbound: &live.Inbound{Src: addr("10.0.0.1:4"), Source: client, Dst: addr("10.0.0.2:80"), Service: "s.b.svc"},
				Ends:    ends,
			}},
		},
		{
			Image: img(true), FDs: []int{-1, -1},
			Client: &Client{Pooled: true, Key: hbone.Key{Local: client, Expect: server.String(), Dst: addr("10.0.0.2:15008"), Src: netip.MustParseAddr("10.0.0.1")}},
			Connections: map[uint32]*Connection{5: {
				Report:    report.Past{Params: report.Params{Src: addr("[fd00::1]:1")}, Opened: time.Now(), Sent: 24},
				Outbound:  &live.Outbound{Src: addr("10.0.0.1:5"), OriginalDst: addr("10.0.0.9:80"), ActualDst: addr("10.0.0.2:15008"), Protocol: live.HBONE},
				Endpoints: []string{"x", "y"},
			}},
		},
	}
}

// settle makes what two readings of a clock may differ in equal.
func settle(t testing.TB, want, got []*Tunnel) {
	t.Helper()
	for n := range want {
		for id, c := range want[n].Connections {
			other := got[n].Connections[id]
			if d := c.Report.Opened.Sub(other.Report.Opened).Abs(); d > time.Second {
				t.Errorf("opened %v apart", d)
			}
			other.Report.Opened = c.Report.Opened
		}
	}
}

func decodeAll(t testing.TB, b []byte) []*Tunnel {
	t.Helper()
	list, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	var tunnels []*Tunnel
	for n, d := range list {
		if d.Err != nil {
			t.Fatalf("tunnel %d: %v", n, d.Err)
		}
		for i := range d.Tunnel.FDs {
			d.Tunnel.FDs[i] = -1
		}
		tunnels = append(tunnels, d.Tunnel)
	}
	return tunnels
}

func TestALotComesOutAsItWentIn(t *testing.T) {
	lot := sample()
	b, err := Encode(lot, Format)
	if err != nil {
		t.Fatal(err)
	}
	got := decodeAll(t, b)
	want := sample()
	settle(t, want, got)
	if !reflect.DeepEqual(got, want) {
		for n := range want {
			t.Errorf("tunnel %d:\n%+v\n%+v\n%+v\n%+v", n, got[n], want[n], got[n].Image, want[n].Image)
		}
	}
	for _, s := range []record.State{lot[0].Image.Out, lot[0].Image.In.State} { // which Encode must not have wiped
		if s.Secret == ([record.MaxSecret]byte{}) {
			t.Error("the lot has lost its secrets")
		}
	}
}

// Each release adds an image that it has written; all releases to come read it.
func TestImagesOfEveryReleaseAreRead(t *testing.T) {
	files, err := filepath.Glob("testdata/golden/*.image")
	if err != nil || len(files) == 0 {
		t.Fatal("no images", err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		got := decodeAll(t, b)
		want := sample()
		for n := range want { // the clock of the machine that wrote it means nothing here
			for id, c := range want[n].Connections {
				got[n].Connections[id].Report.Opened = c.Report.Opened
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s reads as another lot", file)
		}
	}
}

// What this release writes is its golden image, so that a change of the format is
// seen: then the format gets a new number and a new file. GOLDEN=write makes one.
func TestThisReleaseWritesItsImage(t *testing.T) {
	b, err := Encode(sample(), Format)
	if err != nil {
		t.Fatal(err)
	}
	path := fmt.Sprintf("testdata/golden/format-%d.image", Format)
	if os.Getenv("GOLDEN") == "write" {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(timeless(t, b), timeless(t, want)) {
		t.Errorf("this release writes another image than %s", path)
	}
}

// timeless is an image without what the clock has put into it.
func timeless(t *testing.T, b []byte) []byte {
	t.Helper()
	var img pb.Image
	if err := proto.Unmarshal(b, &img); err != nil {
		t.Fatal(err)
	}
	for _, m := range img.Tunnels {
		for _, c := range m.Connections {
			c.Opened = 1
		}
	}
	out, err := proto.MarshalOptions{Deterministic: true}.Marshal(&img)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestEveryProperPrefixOfAnImageIsRefused(t *testing.T) {
	b, err := Encode(sample(), Format)
	if err != nil {
		t.Fatal(err)
	}
	for n := range b {
		list, err := Decode(b[:n])
		if err != nil {
			continue
		}
		// Between two tunnels it ends well: the count, which is sent beside it, tells.
		if len(list) >= len(sample()) {
			t.Errorf("%d of %d bytes are a lot", n, len(b))
		}
	}
}

func TestATunnelThatCannotBeIsRefusedAlone(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(*pb.Tunnel)
		want  string
	}{
		"a need of a later release": {func(m *pb.Tunnel) { m.Needs = append(m.Needs, 99) }, "needs feature 99"},
		"no descriptors":            {func(m *pb.Tunnel) { m.Descriptors = 0 }, "0 descriptors"},
		"too many descriptors":      {func(m *pb.Tunnel) { m.Descriptors = 1 << 30 }, "descriptors"},
		"no engine":                 {func(m *pb.Tunnel) { m.Engine = nil }, "without its engine's part"},
		"both sides":                {func(m *pb.Tunnel) { m.Client = &pb.Client{} }, "neither a server's nor a client's"},
		"an unknown suite":          {func(m *pb.Tunnel) { m.Engine.Out.Suite = 0x1303 }, "out:"},
		"a short secret":            {func(m *pb.Tunnel) { m.Engine.Out.Secret = []byte{1} }, "a secret of 1 bytes"},
		"no connection":             {func(m *pb.Tunnel) { m.Connections = nil }, "nothing is known"},
		"a connection of no kind":   {func(m *pb.Tunnel) { m.Connections[0].Inbound = nil }, "neither in nor out"},
		"no address to judge":       {func(m *pb.Tunnel) { m.Connections[0].Inbound.Src = "" }, "nothing that policy could judge"},
		"an address":                {func(m *pb.Tunnel) { m.Server.Peer = "nowhere" }, `"nowhere"`},
		"an identity":               {func(m *pb.Tunnel) { m.Server.Identity = "me" }, `"me"`},
		"a descriptor of another":   {func(m *pb.Tunnel) { m.Engine.Streams[1].Joint.Fd = 2 }, "descriptor 2 of 2"},
		"a stream twice":            {func(m *pb.Tunnel) { m.Engine.Streams[1].Id = 3 }, "stream 3 after 3"},
		"a size below zero":         {func(m *pb.Tunnel) { m.Engine.Limit = -1 }, "a size of -1"},
		"a header table":            {func(m *pb.Tunnel) { m.Engine.HpackSize = 5000 }, "header table"},
		"an open stream alone":      {func(m *pb.Tunnel) { m.Engine.Streams[0].Closed = false }, "joined with nothing"},
	} {
		b, err := Encode(sample(), Format)
		if err != nil {
			t.Fatal(err)
		}
		var img pb.Image
		if err := proto.Unmarshal(b, &img); err != nil {
			t.Fatal(err)
		}
		tc.spoil(img.Tunnels[0])
		if b, err = proto.Marshal(&img); err != nil {
			t.Fatal(err)
		}
		list, err := Decode(b)
		if err != nil || len(list) != 2 {
			t.Fatalf("%s: %v", name, err)
		}
		if list[0].Err == nil || !strings.Contains(list[0].Err.Error(), tc.want) {
			t.Errorf("%s: %v", name, list[0].Err)
		}
		if list[1].Err != nil {
			t.Errorf("%s: the other tunnel: %v", name, list[1].Err)
		}
	}
}

func TestAnotherFormatIsRefused(t *testing.T) {
	for _, format := range []uint32{0, Format + 1} {
		b, err := Encode(nil, format)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(b); err == nil {
			t.Errorf("format %d is read", format)
		}
	}
}

func FuzzDecode(f *testing.F) {
	b, err := Encode(sample(), Format)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := Decode(b)
		if err != nil {
			return
		}
		var good []*Tunnel
		for _, d := range list {
			if d.Tunnel == nil {
				t.Fatal("neither a tunnel nor what is wrong with it")
			}
			if d.Err == nil {
				good = append(good, d.Tunnel)
			}
		}
		again, err := Encode(good, Format)
		if err != nil {
			return // text that is not UTF-8
		}
		decodeAll(t, again)
	})
}
