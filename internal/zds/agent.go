// SPDX-License-Identifier: Apache-2.0

package zds

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/ztunnel-go/ztunnel/internal/zds/zdspb"
)

// answerWait bounds the wait for an answer. A proxy of ours answers within 4 s,
// also where a start takes longer.
const answerWait = 10 * time.Second

// maxAnswer is the longest answer that is read, in bytes, as Istio's agent does.
const maxAnswer = 1024

// A Listener is the agent's end: proxies connect to it.
type Listener struct{ l *net.UnixListener }

// Listen makes the socket at path, for root alone. A socket that is left from
// before is replaced; that nobody else is using it is the caller's to know.
func Listen(path string) (*Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen for proxies: %w", err)
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: path})
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err != nil {
		if l != nil {
			l.Close()
		}
		return nil, fmt.Errorf("listen for proxies: %w", err)
	}
	return &Listener{l}, nil
}

// Accept waits for a proxy. Its greeting has not been read yet: see
// [Peer.Hello].
func (l *Listener) Accept() (*Peer, error) {
	conn, err := l.l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	p := &Peer{conn: conn, answers: make(chan []byte), gone: make(chan struct{}), closed: make(chan struct{})}
	p.reading.Go(p.read)
	return p, nil
}

// Close stops listening and removes the socket. Connections stay.
func (l *Listener) Close() error { return l.l.Close() }

// A Peer is a proxy that has connected, as the agent sees it. Hello, Ask and
// Close are for one goroutine.
type Peer struct {
	conn    *net.UnixConn
	answers chan []byte    // packets, as they come; nobody sends any unasked
	gone    chan struct{}  // closed when the connection has ended
	closed  chan struct{}  // closed by Close
	once    sync.Once      // of Close
	reading sync.WaitGroup // read
}

// A Refused is a request that the proxy did not accept. It may be sent again.
type Refused struct{ Text string }

// Error is the proxy's text.
func (r *Refused) Error() string { return "the proxy refuses it: " + r.Text }

var (
	errNoAnswer = errors.New("the proxy does not answer")
	errGone     = errors.New("the proxy has closed the connection")
)

// read hands packets on until the connection ends, which it is the one to see
// while nothing is asked.
func (p *Peer) read() {
	defer close(p.gone)
	for {
		// One more than an answer may have shows that it was too long.
		buf := make([]byte, maxAnswer+1)
		n, err := p.conn.Read(buf)
		if err != nil || n == 0 {
			return
		}
		select {
		case p.answers <- buf[:n]:
		case <-p.closed:
			return
		}
	}
}

// Gone is closed when the proxy has ended the connection.
func (p *Peer) Gone() <-chan struct{} { return p.gone }

// Hello waits for the greeting, which is the proxy's first packet.
func (p *Peer) Hello() error {
	var hello zdspb.ZdsHello
	if err := p.answer(&hello); err != nil {
		return fmt.Errorf("greeting of a proxy: %w", err)
	}
	if v := hello.GetVersion(); v != zdspb.Version_V1 {
		return fmt.Errorf("greeting of a proxy: it speaks version %d, and we 1", v)
	}
	return nil
}

// Ask sends a request and waits for the answer: nil, a *[Refused], or an error
// after which the connection is of no more use. The namespace of an Add stays
// the caller's.
func (p *Peer) Ask(r Request) error {
	packet, oob, err := encode(r)
	if err != nil {
		return err
	}
	_ = p.conn.SetWriteDeadline(time.Now().Add(writeWait))
	if _, _, err := p.conn.WriteMsgUnix(packet, oob, nil); err != nil {
		return fmt.Errorf("send %v to proxy: %w", r.Kind, err)
	}
	var response zdspb.WorkloadResponse
	if err := p.answer(&response); err != nil {
		return fmt.Errorf("answer to %v: %w", r.Kind, err)
	}
	ack := response.GetAck()
	switch {
	case ack == nil:
		return fmt.Errorf("answer to %v: it has no ack", r.Kind)
	case ack.GetError() != "":
		return &Refused{ack.GetError()}
	}
	return nil
}

// answer reads one packet.
func (p *Peer) answer(m proto.Message) error {
	late := time.NewTimer(answerWait)
	defer late.Stop()
	select {
	case packet := <-p.answers:
		if len(packet) > maxAnswer {
			return fmt.Errorf("it is longer than %d bytes", maxAnswer)
		}
		return proto.Unmarshal(packet, m)
	case <-p.gone:
		return errGone
	case <-late.C:
		return errNoAnswer
	}
}

// Close ends the connection. Later calls do nothing.
func (p *Peer) Close() error {
	var err error
	p.once.Do(func() {
		close(p.closed)
		err = p.conn.Close()
	})
	p.reading.Wait()
	return err
}

// encode is decode's other way: the packet, and the control message with the
// namespace of an Add.
func encode(r Request) (packet, oob []byte, _ error) {
	var m zdspb.WorkloadRequest
	switch r.Kind {
	case Add:
		add := &zdspb.AddWorkload{Uid: r.UID, Late: r.Late}
		if r.Info != nil {
			add.WorkloadInfo = &zdspb.WorkloadInfo{Name: r.Info.Name, Namespace: r.Info.Namespace, ServiceAccount: r.Info.ServiceAccount}
		}
		if r.NetNS == nil {
			return nil, nil, fmt.Errorf("add of pod %s: it has no namespace to send", r.UID)
		}
		m.Payload = &zdspb.WorkloadRequest_Add{Add: add}
		oob = unix.UnixRights(r.NetNS.Fd())
	case Keep:
		m.Payload = &zdspb.WorkloadRequest_Keep{Keep: &zdspb.KeepWorkload{Uid: r.UID}}
	case Del:
		m.Payload = &zdspb.WorkloadRequest_Del{Del: &zdspb.DelWorkload{Uid: r.UID}}
	case SnapshotSent:
		m.Payload = &zdspb.WorkloadRequest_SnapshotSent{SnapshotSent: &zdspb.SnapshotSent{}}
	}
	packet, err := proto.Marshal(&m)
	if err != nil {
		return nil, nil, fmt.Errorf("%v of pod %s: %w", r.Kind, r.UID, err)
	}
	if len(packet) > maxRequest {
		return nil, nil, fmt.Errorf("%v of pod %s: %d bytes, and a request has at most %d", r.Kind, r.UID, len(packet), maxRequest)
	}
	return packet, oob, nil
}
