// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/ztunnel-go/ztunnel/dataplane/engine"
	pb "github.com/ztunnel-go/ztunnel/dataplane/handover/handoverpb"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone/record"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
	"github.com/ztunnel-go/ztunnel/dataplane/live"
	"github.com/ztunnel-go/ztunnel/dataplane/reactor"
	"github.com/ztunnel-go/ztunnel/dataplane/relay"
	"github.com/ztunnel-go/ztunnel/dataplane/report"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/internal/sock"
)

// A Decoded is one tunnel of a lot, or why it cannot be one here. The others
// are none the worse for it.
type Decoded struct {
	Tunnel *Tunnel // its FDs have their number, and are not set
	Err    error
}

// Decode reads the bytes of a lot. The error says that they are none; what is
// wrong with single tunnels is told of each.
func Decode(b []byte) ([]Decoded, error) {
	var img pb.Image
	if err := proto.Unmarshal(b, &img); err != nil {
		return nil, fmt.Errorf("handover image: %w", err)
	}
	if img.Format < OldestFormat || img.Format > Format {
		return nil, fmt.Errorf("handover image: format %d, not %d to %d", img.Format, OldestFormat, Format)
	}
	list := make([]Decoded, len(img.Tunnels))
	for n, m := range img.Tunnels {
		list[n] = decodeTunnel(m)
		clear(m.GetEngine().GetIn().GetHalf().GetSecret())
		clear(m.GetEngine().GetOut().GetSecret())
	}
	return list, nil
}

// A reader keeps the first thing that is wrong.
type reader struct{ err error }

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
}

// maxDescriptors bounds those of one tunnel: a peer of ours may open MaxStreams.
const maxDescriptors = 1 << 16

func decodeTunnel(m *pb.Tunnel) Decoded {
	r := &reader{}
	known := features()
	for _, need := range m.Needs {
		if !slices.Contains(known, Feature(need)) {
			r.fail("needs feature %d, which this release does not know", need)
		}
	}
	if m.Descriptors < 1 || m.Descriptors > maxDescriptors {
		r.fail("a tunnel with %d descriptors", m.Descriptors)
		return Decoded{Tunnel: &Tunnel{Image: &engine.Image{}, FDs: make([]int, min(m.Descriptors, maxDescriptors))}, Err: r.err}
	}
	t := &Tunnel{
		FDs: make([]int, m.Descriptors), Local: r.addr(m.Local), Remote: r.addr(m.Remote),
		Image: r.engine(m.Engine), Connections: make(map[uint32]*Connection, len(m.Connections)),
	}
	if s := m.Server; s != nil {
		t.Server = &Server{Peer: r.addr(s.Peer), Dst: r.addr(s.Dst), Identity: r.id(s.Identity)}
	}
	if c := m.Client; c != nil {
		t.Client = &Client{Pooled: c.Pooled, Key: hbone.Key{Local: r.id(c.Local), Expect: c.Expect, Dst: r.addr(c.Dst), Src: r.ip(c.Src)}}
	}
	for _, chain := range m.Chains {
		t.Chains = append(t.Chains, chain.Certificates)
	}
	for _, c := range m.Connections {
		t.Connections[c.Stream] = r.connection(c)
	}
	if r.err == nil {
		r.err = t.check()
	}
	return Decoded{Tunnel: t, Err: r.err}
}

// check looks at what the parts promise each other.
func (t *Tunnel) check() error {
	if (t.Server == nil) == (t.Client == nil) || t.Image.Client != (t.Client != nil) {
		return errors.New("a tunnel that is neither a server's nor a client's")
	}
	last := uint32(0)
	for _, s := range t.Image.Streams {
		if s.ID <= last {
			return fmt.Errorf("stream %d after %d", s.ID, last)
		}
		last = s.ID
		c := t.Connections[s.ID]
		if s.Joint == nil {
			continue
		}
		if c == nil {
			return fmt.Errorf("stream %d: nothing is known of its connection", s.ID)
		}
		if (c.Inbound == nil) == (c.Outbound == nil) || (c.Inbound != nil) != (t.Server != nil) {
			return fmt.Errorf("stream %d: a connection that goes neither in nor out", s.ID)
		}
	}
	return t.Image.Check(len(t.FDs))
}

func (r *reader) engine(m *pb.Engine) *engine.Image {
	if m == nil {
		r.fail("a tunnel without its engine's part")
		return &engine.Image{}
	}
	i := &engine.Image{
		Client: m.Client, Settings: r.settings(m.Settings), Limit: r.int(m.Limit),
		In: r.receiver(m.In), Out: r.half(m.Out), Asked: m.Asked, Owes: m.Owes,
		Part: m.Part, Unsent: m.Unsent, Later: m.Later, Frame: r.frame(m.Frame),
		HPACK:   wire.Decoder{Table: fields(m.Hpack), Size: r.int(m.HpackSize), Less: r.int(m.HpackLess)},
		Leaving: m.Leaving, Draining: uint8(m.Draining), LastPeer: m.LastPeer, Refuse: m.Refuse, NextID: m.NextId,
		PeerWindow: m.PeerWindow, PeerSettings: m.PeerSettings, Acknowledged: m.Acknowledged,
		SendWindow: m.SendWindow, RecvWindow: m.RecvWindow, Uncredited: m.Uncredited,
		Budget: wire.Budget{Left: int(m.BudgetLeft), Last: m.BudgetLast}, Provoked: r.int(m.Provoked),
		SettingsDue: reactor.Time(m.SettingsDue), PingDue: reactor.Time(m.PingDue), PingWaits: m.PingWaits,
		Past: wire.PastState{Ended: m.PastEnded, Skipped: m.PastSkipped},
	}
	if g := m.GoAway; g != nil {
		i.GoAway = &wire.GoAwayError{Code: wire.Code(g.Code), Remote: g.Remote, Reason: g.Reason}
	}
	if m.Draining > math.MaxUint8 {
		r.fail("drain step %d", m.Draining)
	}
	if err := i.HPACK.Check(); err != nil {
		r.fail("%w", err)
	}
	for _, s := range m.Streams {
		i.Streams = append(i.Streams, r.stream(s))
	}
	return i
}

// int is a count or a size.
func (r *reader) int(n int64) int {
	if n < 0 || n > math.MaxInt32 {
		r.fail("a size of %d", n)
		return 0
	}
	return int(n)
}

func (r *reader) settings(m *pb.Settings) wire.Settings {
	return wire.Settings{
		StreamWindow: m.GetStreamWindow(), ConnWindow: m.GetConnWindow(), MaxFrameSize: m.GetMaxFrameSize(),
		MaxHeaderList: m.GetMaxHeaderList(), MaxStreams: m.GetMaxStreams(),
		PingInterval: time.Duration(m.GetPingInterval()), PingTimeout: time.Duration(m.GetPingTimeout()),
		HandshakeTimeout: time.Duration(m.GetHandshakeTimeout()),
	}
}

func (r *reader) half(m *pb.Half) (s record.State) {
	if m.GetSuite() > math.MaxUint16 || len(m.GetSecret()) != len(s.Secret) {
		r.fail("suite %d with a secret of %d bytes", m.GetSuite(), len(m.GetSecret()))
		return s
	}
	s.Suite, s.Seq = uint16(m.GetSuite()), m.GetSeq()
	copy(s.Secret[:], m.GetSecret())
	return s
}

func (r *reader) receiver(m *pb.Receiver) (s record.ReceiverState) {
	if len(m.GetHeader()) > len(s.Header) || m.GetUseless() > math.MaxUint8 {
		r.fail("a receiver with %d bytes of a header and %d useless records", len(m.GetHeader()), m.GetUseless())
		return s
	}
	s.State, s.Client, s.Left, s.Useless = r.half(m.GetHalf()), m.GetClient(), m.GetLeft(), uint8(m.GetUseless())
	s.HeaderN = uint8(copy(s.Header[:], m.GetHeader()))
	return s
}

func fields(list []*pb.Field) []wire.Field {
	out := make([]wire.Field, len(list))
	for n, f := range list {
		out[n] = wire.Field{Name: f.Name, Value: f.Value}
	}
	return out
}

func (r *reader) frame(m *pb.Frame) engine.FrameImage {
	f := engine.FrameImage{
		Preface: r.int(m.GetPreface()), Begun: m.GetBegun(), Head: m.GetHead(), Left: r.int(m.GetLeft()), Pad: r.int(m.GetPad()),
		PadKnown: m.GetPadKnown(), Data: r.int(m.GetData()), Payload: m.GetPayload(), Block: m.GetBlock(), BlockID: m.GetBlockId(),
		BlockN: r.int(m.GetBlockN()), BlockEnd: m.GetBlockEnd(), Sink: m.GetSink(),
	}
	if m.GetFault() != nil {
		f.Fault = &engine.FaultImage{ID: m.Fault.Id, Code: wire.Code(m.Fault.Code), Why: m.Fault.Why}
	}
	return f
}

func (r *reader) stream(m *pb.Stream) engine.StreamImage {
	s := engine.StreamImage{
		ID: m.Id, Closed: m.Closed, SendWindow: m.SendWindow, RecvWindow: m.RecvWindow, Uncredited: m.Uncredited,
		Opened: reactor.Time(m.Opened), Responded: m.Responded, RecvEnded: m.RecvEnded, EndSent: m.EndSent, Deaf: m.Deaf,
		Interim: uint8(min(m.Interim, math.MaxUint8)), ReadErr: errorOf(m.ReadErr), WriteErr: errorOf(m.WriteErr), Queue: m.Queue,
	}
	if j := m.Joint; j != nil {
		s.Joint = &engine.JointImage{
			FD: int(min(j.Fd, math.MaxInt32)), Client: j.Client, InOver: j.InOver, OutOver: j.OutOver, Dark: j.Dark,
			Broken: j.Broken, LingerDue: reactor.Time(j.LingerDue), Cause: errorOf(j.Cause),
		}
	}
	return s
}

func errorOf(m *pb.Error) *engine.ErrorImage {
	if m == nil {
		return nil
	}
	return &engine.ErrorImage{Text: m.Text, Quiet: m.Quiet, Clean: m.Clean}
}

func (r *reader) connection(m *pb.Connection) *Connection {
	if m.Reporter > uint32(report.Destination) {
		r.fail("stream %d: reporter %d", m.Stream, m.Reporter)
	}
	c := &Connection{Endpoints: m.Endpoints, Report: report.Past{
		Opened: timeOf(m.Opened), Sent: m.Sent, Received: m.Received,
		Params: report.Params{
			Reporter: report.Side(m.Reporter), Src: r.addr(m.Src), Dst: r.addr(m.Dst), HBONEAddr: m.HboneAddr,
			Source: workload(m.Source), SourceBaggage: baggage(m.SourceBaggage),
			Destination: workload(m.Destination), DestinationBaggage: baggage(m.DestinationBaggage),
			MutualTLS: m.MutualTls, SourceIdentity: r.id(m.SourceIdentity), DestinationIdentity: r.id(m.DestinationIdentity),
		},
	}}
	if s := m.Service; s != nil {
		c.Report.Params.Service = &mesh.Service{Namespace: s.Namespace, Name: s.Name, Hostname: s.Hostname}
	}
	if in := m.Inbound; in != nil {
		c.Inbound = &live.Inbound{Src: r.addr(in.Src), Source: r.id(in.Source), Dst: r.addr(in.Dst), Service: in.Service}
		if !c.Inbound.Src.IsValid() || !c.Inbound.Dst.IsValid() {
			r.fail("stream %d: nothing that policy could judge", m.Stream)
		}
	}
	if o := m.Outbound; o != nil {
		c.Outbound = &live.Outbound{
			Src: r.addr(o.Src), OriginalDst: r.addr(o.OriginalDst), ActualDst: r.addr(o.ActualDst), Protocol: live.Protocol(o.Protocol),
		}
	}
	if e := m.Ends; e != nil {
		c.Ends = &relay.EndsState{First: relay.Party(e.First), Client: endOf(e.Client), Upstream: endOf(e.Upstream)}
	}
	return c
}

func workload(m *pb.Workload) *mesh.Workload {
	if m == nil {
		return nil
	}
	return &mesh.Workload{
		UID: m.Uid, Name: m.Name, Namespace: m.Namespace, TrustDomain: m.TrustDomain, ServiceAccount: m.ServiceAccount,
		WorkloadName: m.WorkloadName, CanonicalName: m.CanonicalName, CanonicalRevision: m.CanonicalRevision,
		ClusterID: m.ClusterId, Locality: mesh.Locality{Region: m.Region, Zone: m.Zone, Subzone: m.Subzone},
	}
}

func baggage(m *pb.Baggage) *report.Baggage {
	if m == nil {
		return nil
	}
	return &report.Baggage{
		Cluster: m.Cluster, Namespace: m.Namespace, WorkloadType: mesh.WorkloadType(m.WorkloadType), Workload: m.Workload,
		Service: m.Service, Revision: m.Revision, Region: m.Region, Zone: m.Zone,
	}
}

func endOf(m *pb.End) relay.End {
	return relay.End{How: relay.Ending(m.GetHow()), Seen: m.GetSeen(), TCP: sock.TCPInfo{
		SRTT: time.Duration(m.GetSrtt()), MinRTT: time.Duration(m.GetMinRtt()),
		Retransmits: m.GetRetransmits(), Lost: m.GetLost(),
	}}
}

// addr reads an address; empty is none.
func (r *reader) addr(s string) netip.AddrPort {
	if s == "" {
		return netip.AddrPort{}
	}
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		r.fail("address %q", s)
	}
	return a
}

func (r *reader) ip(s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		r.fail("address %q", s)
	}
	return a
}

func (r *reader) id(s string) identity.ID {
	if s == "" {
		return identity.ID{}
	}
	id, err := identity.Parse(s)
	if err != nil {
		r.fail("identity %q", s)
	}
	return id
}
