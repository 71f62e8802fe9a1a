// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/ztunnel-go/ztunnel/dataplane/engine"
	pb "github.com/ztunnel-go/ztunnel/dataplane/handover/handoverpb"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone/record"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
	"github.com/ztunnel-go/ztunnel/dataplane/live"
	"github.com/ztunnel-go/ztunnel/dataplane/relay"
	"github.com/ztunnel-go/ztunnel/dataplane/report"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// Format is the version of the image that this release writes, and the newest
// that it reads; OldestFormat is the oldest.
const (
	Format       = 1
	OldestFormat = 1
)

// Encode makes the bytes of a lot, in a format that [Format] names. They hold
// secrets: whoever has them wipes them. Descriptors are not in them, but how
// many each tunnel has.
func Encode(lot []*Tunnel, format uint32) ([]byte, error) {
	img := &pb.Image{Format: format}
	for _, t := range lot {
		img.Tunnels = append(img.Tunnels, tunnelMessage(t))
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(img)
	for _, t := range img.Tunnels {
		clear(t.Engine.In.GetHalf().GetSecret())
		clear(t.Engine.Out.GetSecret())
	}
	return b, err
}

func tunnelMessage(t *Tunnel) *pb.Tunnel {
	m := &pb.Tunnel{
		Descriptors: uint32(len(t.FDs)), Local: addrText(t.Local), Remote: addrText(t.Remote),
		Engine: engineMessage(t.Image),
	}
	for _, n := range t.needs() {
		m.Needs = append(m.Needs, uint32(n))
	}
	if s := t.Server; s != nil {
		m.Server = &pb.Server{Peer: addrText(s.Peer), Dst: addrText(s.Dst), Identity: idText(s.Identity)}
	}
	if c := t.Client; c != nil {
		m.Client = &pb.Client{
			Local: idText(c.Key.Local), Expect: c.Key.Expect, Dst: addrText(c.Key.Dst), Src: ipText(c.Key.Src), Pooled: c.Pooled,
		}
	}
	for _, chain := range t.Chains {
		m.Chains = append(m.Chains, &pb.Chain{Certificates: chain})
	}
	for _, s := range t.Image.Streams { // in their order, so that equal lots are equal bytes
		if c := t.Connections[s.ID]; c != nil {
			m.Connections = append(m.Connections, connectionMessage(s.ID, c))
		}
	}
	return m
}

func engineMessage(i *engine.Image) *pb.Engine {
	m := &pb.Engine{
		Client: i.Client, Settings: settingsMessage(&i.Settings), Limit: int64(i.Limit),
		Asked: i.Asked, Owes: i.Owes, Part: i.Part, Unsent: i.Unsent, Later: i.Later, Frame: frameMessage(&i.Frame),
		Hpack: fieldMessages(i.HPACK.Table), HpackSize: int64(i.HPACK.Size), HpackLess: int64(i.HPACK.Less),
		Leaving: i.Leaving, Draining: uint32(i.Draining), LastPeer: i.LastPeer, Refuse: i.Refuse, NextId: i.NextID,
		PeerWindow: i.PeerWindow, PeerSettings: i.PeerSettings, Acknowledged: i.Acknowledged,
		SendWindow: i.SendWindow, RecvWindow: i.RecvWindow, Uncredited: i.Uncredited,
		BudgetLeft: int64(i.Budget.Left), BudgetLast: i.Budget.Last, Provoked: int64(i.Provoked),
		SettingsDue: int64(i.SettingsDue), PingDue: int64(i.PingDue), PingWaits: i.PingWaits,
		PastEnded: i.Past.Ended, PastSkipped: i.Past.Skipped,
		Out: halfMessage(&i.Out),
		In: &pb.Receiver{
			Half: halfMessage(&i.In.State), Client: i.In.Client,
			Header: slices.Clone(i.In.Header[:min(int(i.In.HeaderN), len(i.In.Header))]), Left: i.In.Left, Useless: uint32(i.In.Useless),
		},
	}
	if g := i.GoAway; g != nil {
		m.GoAway = &pb.GoAway{Code: uint32(g.Code), Remote: g.Remote, Reason: g.Reason}
	}
	for n := range i.Streams {
		m.Streams = append(m.Streams, streamMessage(&i.Streams[n]))
	}
	return m
}

func halfMessage(s *record.State) *pb.Half {
	return &pb.Half{Suite: uint32(s.Suite), Secret: slices.Clone(s.Secret[:]), Seq: s.Seq}
}

func settingsMessage(s *wire.Settings) *pb.Settings {
	return &pb.Settings{
		StreamWindow: s.StreamWindow, ConnWindow: s.ConnWindow, MaxFrameSize: s.MaxFrameSize,
		MaxHeaderList: s.MaxHeaderList, MaxStreams: s.MaxStreams,
		PingInterval: int64(s.PingInterval), PingTimeout: int64(s.PingTimeout), HandshakeTimeout: int64(s.HandshakeTimeout),
	}
}

func fieldMessages(fields []wire.Field) []*pb.Field {
	list := make([]*pb.Field, len(fields))
	for n, f := range fields {
		list[n] = &pb.Field{Name: f.Name, Value: f.Value}
	}
	return list
}

func frameMessage(f *engine.FrameImage) *pb.Frame {
	m := &pb.Frame{
		Preface: int64(f.Preface), Begun: f.Begun, Head: f.Head, Left: int64(f.Left), Pad: int64(f.Pad), PadKnown: f.PadKnown,
		Data: int64(f.Data), Payload: f.Payload, Block: f.Block, BlockId: f.BlockID, BlockN: int64(f.BlockN),
		BlockEnd: f.BlockEnd, Sink: f.Sink,
	}
	if f.Fault != nil {
		m.Fault = &pb.Fault{Id: f.Fault.ID, Code: uint32(f.Fault.Code), Why: f.Fault.Why}
	}
	return m
}

func streamMessage(s *engine.StreamImage) *pb.Stream {
	m := &pb.Stream{
		Id: s.ID, Closed: s.Closed, SendWindow: s.SendWindow, RecvWindow: s.RecvWindow, Uncredited: s.Uncredited,
		Opened: int64(s.Opened), Responded: s.Responded, RecvEnded: s.RecvEnded, EndSent: s.EndSent, Deaf: s.Deaf,
		Interim: uint32(s.Interim), ReadErr: errorMessage(s.ReadErr), WriteErr: errorMessage(s.WriteErr), Queue: s.Queue,
	}
	if j := s.Joint; j != nil {
		m.Joint = &pb.Joint{
			Fd: uint32(j.FD), Client: j.Client, InOver: j.InOver, OutOver: j.OutOver, Dark: j.Dark, Broken: j.Broken,
			LingerDue: int64(j.LingerDue), Cause: errorMessage(j.Cause),
		}
	}
	return m
}

func errorMessage(e *engine.ErrorImage) *pb.Error {
	if e == nil {
		return nil
	}
	return &pb.Error{Text: e.Text, Quiet: e.Quiet, Clean: e.Clean}
}

func connectionMessage(id uint32, c *Connection) *pb.Connection {
	p := &c.Report.Params
	m := &pb.Connection{
		Stream: id, Reporter: uint32(p.Reporter), Src: addrText(p.Src), Dst: addrText(p.Dst), HboneAddr: p.HBONEAddr,
		Source: workloadMessage(p.Source), SourceBaggage: baggageMessage(p.SourceBaggage),
		Destination: workloadMessage(p.Destination), DestinationBaggage: baggageMessage(p.DestinationBaggage),
		MutualTls: p.MutualTLS, SourceIdentity: idText(p.SourceIdentity), DestinationIdentity: idText(p.DestinationIdentity),
		Opened: clockOf(c.Report.Opened), Sent: c.Report.Sent, Received: c.Report.Received,
		Inbound: inboundMessage(c.Inbound), Endpoints: c.Endpoints, Ends: endsMessage(c.Ends),
	}
	if s := p.Service; s != nil {
		m.Service = &pb.Service{Namespace: s.Namespace, Name: s.Name, Hostname: s.Hostname}
	}
	if o := c.Outbound; o != nil {
		m.Outbound = &pb.Outbound{
			Src: addrText(o.Src), OriginalDst: addrText(o.OriginalDst), ActualDst: addrText(o.ActualDst), Protocol: string(o.Protocol),
		}
	}
	return m
}

func inboundMessage(in *live.Inbound) *pb.Inbound {
	if in == nil {
		return nil
	}
	return &pb.Inbound{Src: addrText(in.Src), Source: idText(in.Source), Dst: addrText(in.Dst), Service: in.Service}
}

// workloadMessage is what labels and lines tell of a workload.
func workloadMessage(w *mesh.Workload) *pb.Workload {
	if w == nil {
		return nil
	}
	return &pb.Workload{
		Uid: w.UID, Name: w.Name, Namespace: w.Namespace, TrustDomain: w.TrustDomain, ServiceAccount: w.ServiceAccount,
		WorkloadName: w.WorkloadName, CanonicalName: w.CanonicalName, CanonicalRevision: w.CanonicalRevision,
		ClusterId: w.ClusterID, Region: w.Locality.Region, Zone: w.Locality.Zone, Subzone: w.Locality.Subzone,
	}
}

func baggageMessage(b *report.Baggage) *pb.Baggage {
	if b == nil {
		return nil
	}
	return &pb.Baggage{
		Cluster: b.Cluster, Namespace: b.Namespace, WorkloadType: uint32(b.WorkloadType), Workload: b.Workload,
		Service: b.Service, Revision: b.Revision, Region: b.Region, Zone: b.Zone,
	}
}

func endsMessage(e *relay.EndsState) *pb.Ends {
	if e == nil {
		return nil
	}
	end := func(e relay.End) *pb.End {
		return &pb.End{
			How: string(e.How), Seen: e.Seen, Srtt: int64(e.TCP.SRTT), MinRtt: int64(e.TCP.MinRTT),
			Retransmits: e.TCP.Retransmits, Lost: e.TCP.Lost,
		}
	}
	return &pb.Ends{First: string(e.First), Client: end(e.Client), Upstream: end(e.Upstream)}
}

// addrText is empty for the zero address.
func addrText(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func ipText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func idText(id identity.ID) string {
	if id.IsZero() {
		return ""
	}
	return id.String()
}

// monotonic is CLOCK_MONOTONIC, which all processes of a machine share.
func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0 // every Linux has it
	}
	return ts.Nano()
}

// clockOf is a moment by that clock, timeOf the same by ours.
func clockOf(t time.Time) int64 { return monotonic() - int64(time.Since(t)) }

func timeOf(clock int64) time.Time {
	return time.Now().Add(-time.Duration(monotonic() - clock))
}
