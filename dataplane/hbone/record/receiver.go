// SPDX-License-Identifier: Apache-2.0

package record

import "fmt"

// Handshake messages that may come after the handshake (RFC 8446, section 4).
const (
	newSessionTicket = 4
	keyUpdate        = 24
)

const (
	// maxMessage bounds a handshake message, as crypto/tls does. None is kept,
	// but somebody who sends longer ones is up to something.
	maxMessage = 64 << 10
	// maxUseless bounds how many records may come in a row that carry no data:
	// empty ones, tickets, key updates, user_canceled. The number is crypto/tls's.
	maxUseless = 16
)

// An Event is what a record was.
type Event uint8

// What [Receiver.Receive] returns.
const (
	// Nothing: the record asks for nothing.
	Nothing Event = iota
	// Data: there is application data.
	Data
	// Answer: the peer has a new key, and wants one of us before our next data
	// (RFC 8446, section 4.6.3): [Half.KeyUpdate] without asking back. One
	// answer may serve for several requests.
	Answer
	// Closed: close_notify. The peer sends nothing more; whatever comes is to
	// be ignored.
	Closed
)

// A ReceiverState is a [Receiver] as a value. It is a secret.
type ReceiverState struct {
	State
	Client  bool    // we are the client, which may be sent tickets
	Header  [4]byte // of the handshake message of which a part has come
	HeaderN uint8   // how many bytes of Header have come
	Left    uint32  // how many bytes of its body have not, once HeaderN is 4
	Useless uint8   // records in a row that carried no data
}

// A Receiver is the direction that we open, with what has to be remembered
// between records. See [NewReceiver]. As a [Half] it is for one goroutine at a
// time, and must not be copied once used.
type Receiver struct {
	half    Half
	client  bool
	header  [4]byte
	headerN uint8
	left    uint32
	useless uint8
}

// NewReceiver continues from s. The error is [ErrSuite], or says that s is
// none of ours.
func NewReceiver(s ReceiverState) (Receiver, error) {
	half, err := NewHalf(s.State)
	if err != nil {
		return Receiver{}, err
	}
	r := Receiver{half: half, client: s.Client, header: s.Header, headerN: s.HeaderN, left: s.Left, useless: s.Useless}
	if !r.possible() {
		return Receiver{}, fmt.Errorf("receiver with %d bytes of the header %x, %d to come and %d useless records", s.HeaderN, s.Header, s.Left, s.Useless)
	}
	return r, nil
}

// possible reports whether r can have come about.
func (r *Receiver) possible() bool {
	switch {
	case r.useless > maxUseless || r.headerN > 4:
		return false
	case r.headerN < 4:
		return r.left == 0
	}
	whole := *r
	return whole.begin() == nil && r.left > 0 && r.left <= whole.left
}

// State is the direction as it stands, for [NewReceiver] elsewhere.
func (r *Receiver) State() ReceiverState {
	return ReceiverState{
		State: r.half.State(), Client: r.client,
		Header: r.header, HeaderN: r.headerN, Left: r.left, Useless: r.useless,
	}
}

// Wipe forgets the secret. Nothing can be opened any more.
func (r *Receiver) Wipe() { *r = Receiver{} }

// Due reports whether the peer's key has been used so long that it should be
// asked for another ([Half.KeyUpdate]).
func (r *Receiver) Due() bool { return r.half.Due() }

// Receive opens in place the record that b is (see [Length]). With [Data] there
// is content, which lies inside b and is not empty. An error is an
// [*AlertError] and final: unless it is Remote, the peer is to be told its Alert.
func (r *Receiver) Receive(b []byte) ([]byte, Event, error) {
	content, t, err := r.half.Open(b)
	if err != nil {
		return nil, Nothing, err
	}
	if r.headerN > 0 && t != Handshake {
		return nil, Nothing, breach(UnexpectedMessage, "a record of type %d within a handshake message", t)
	}
	if t == ApplicationData && len(content) > 0 {
		r.useless = 0
		return content, Data, nil
	}
	if r.useless++; r.useless > maxUseless {
		return nil, Nothing, breach(UnexpectedMessage, "%d records in a row without data", r.useless)
	}
	switch t {
	case ApplicationData:
		return nil, Nothing, nil
	case AlertType:
		event, err := alert(content)
		return nil, event, err
	case Handshake:
		event, err := r.messages(content)
		return nil, event, err
	}
	return nil, Nothing, breach(UnexpectedMessage, "protected content of type %d", t)
}

// alert reads an alert, which is exactly one record (RFC 8446, section 5.1). Its
// level says nothing: all but two are fatal (section 6).
func alert(b []byte) (Event, error) {
	switch {
	case len(b) == 0:
		return Nothing, breach(UnexpectedMessage, "an empty alert")
	case len(b) != 2:
		return Nothing, breach(DecodeError, "an alert of %d bytes", len(b))
	}
	switch a := Alert(b[1]); a {
	case CloseNotify:
		return Closed, nil
	case UserCanceled:
		return Nothing, nil // close_notify follows (section 6.1)
	default:
		return Nothing, &AlertError{Alert: a, Remote: true}
	}
}

// messages reads a record's worth of handshake messages. They may be split
// over records and joined within one; what is not looked at is not kept.
func (r *Receiver) messages(b []byte) (Event, error) {
	if len(b) == 0 {
		return Nothing, breach(UnexpectedMessage, "an empty handshake record")
	}
	for len(b) > 0 {
		if r.headerN < 4 {
			n := copy(r.header[r.headerN:], b)
			r.headerN += uint8(n)
			b = b[n:]
			if r.headerN < 4 {
				return Nothing, nil
			}
			if err := r.begin(); err != nil {
				return Nothing, err
			}
			continue
		}
		if r.header[0] == keyUpdate {
			return r.update(b)
		}
		n := min(uint32(len(b)), r.left)
		b = b[n:]
		if r.left -= n; r.left == 0 {
			r.headerN = 0
		}
	}
	return Nothing, nil
}

// minTicket is the length of the shortest NewSessionTicket (RFC 8446, section
// 4.6.1): lifetime, age, no nonce, a ticket of one byte, no extension.
const minTicket = 4 + 4 + 1 + 2 + 1 + 2

// begin looks at the header of a message.
func (r *Receiver) begin() error {
	r.left = uint32(r.header[1])<<16 | uint32(r.header[2])<<8 | uint32(r.header[3])
	switch t := r.header[0]; {
	case t == newSessionTicket && r.client:
		if r.left < minTicket || r.left > maxMessage {
			return breach(DecodeError, "a session ticket of %d bytes", r.left)
		}
	case t == keyUpdate:
		if r.left != 1 {
			return breach(DecodeError, "a KeyUpdate of %d bytes", r.left)
		}
	default:
		return breach(UnexpectedMessage, "a handshake message of type %d after the handshake", t)
	}
	return nil
}

// update takes the body of a KeyUpdate, with which its record must end, since
// what comes after is under another key (RFC 8446, section 5.1).
func (r *Receiver) update(b []byte) (Event, error) {
	switch {
	case b[0] > 1:
		return Nothing, breach(IllegalParameter, "a KeyUpdate that requests %d", b[0])
	case len(b) > 1:
		return Nothing, breach(UnexpectedMessage, "%d bytes after a KeyUpdate", len(b)-1)
	}
	r.headerN, r.left = 0, 0
	if err := r.half.Update(); err != nil {
		return Nothing, breach(InternalError, "%v", err)
	}
	if b[0] == 1 {
		return Answer, nil
	}
	return Nothing, nil
}
