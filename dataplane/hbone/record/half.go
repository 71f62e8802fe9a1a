// SPDX-License-Identifier: Apache-2.0

package record

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"math"
)

// A Type is what a record holds (RFC 8446, section 5.1).
type Type uint8

// The types of content. Outside, a protected record is always ApplicationData.
const (
	ChangeCipherSpec Type = 20
	AlertType        Type = 21
	Handshake        Type = 22
	ApplicationData  Type = 23
)

// Sizes in bytes (RFC 8446, sections 5.1 and 5.2).
const (
	HeaderLen = 5
	tagLen    = 16
	// Overhead is what a record has beside its content.
	Overhead = HeaderLen + 1 + tagLen
	// MaxContent is the most content that a record may have.
	MaxContent = 1 << 14
	// MaxLength is the most that [Length] returns: a peer's record may have a
	// body of 2^14 + 256.
	MaxLength = HeaderLen + MaxContent + 256
	// MaxSecret is the length of the longer suite's secrets.
	MaxSecret = 48
)

// Limits of one key, in records (RFC 8446, section 5.5: 2^24.5 full-sized
// records for AES-GCM).
const (
	// UpdateAfter is when [Half.Due] asks for a new key.
	UpdateAfter = 1 << 24
	// keyLimit is when Seal refuses data.
	keyLimit = 23_726_566
)

// ErrKeyLimit is what [Half.Seal] returns when its key has sealed all that it
// may: a KeyUpdate is overdue.
var ErrKeyLimit = errors.New("TLS key has sealed its limit of records")

// ErrSuite is a cipher suite, or TLS version, that this package does not have.
var ErrSuite = errors.New("no TLS 1.3 AES-GCM suite")

// Available reports whether the standard library lets us have what the record
// layer needs. It does not under GODEBUG fips140=only, where crypto/cipher
// refuses nonces that are not random; let crypto/tls keep connections then.
func Available() error {
	block, err := aes.NewCipher(make([]byte, 16))
	if err == nil {
		_, err = cipher.NewGCM(block)
	}
	if err != nil {
		return fmt.Errorf("record layer of our own: %w", err)
	}
	return nil
}

// A State is one direction of a connection as a value. It is a secret.
type State struct {
	Suite  uint16          // TLS_AES_128_GCM_SHA256 or TLS_AES_256_GCM_SHA384
	Secret [MaxSecret]byte // the current traffic secret; 32 bytes of it with SHA-256
	Seq    uint64          // of the next record under Secret
}

// A Half is one direction of a connection. The zero value is of no use: see
// [NewHalf]. It allocates its cipher at the first record and nothing after. It
// is for one goroutine at a time, and must not be copied once used.
type Half struct {
	state State
	aead  cipher.AEAD // nil until the first record under the key
	iv    [12]byte
	nonce [12]byte // here, since a slice that goes to an interface escapes
}

// suite returns what the two suites differ in; the key is a hash's half for
// AES-128 and 32 bytes for AES-256.
func suite(id uint16) (newHash func() hash.Hash, secretLen, keyLen int, err error) {
	switch id {
	case tls.TLS_AES_128_GCM_SHA256:
		return sha256.New, sha256.Size, 16, nil
	case tls.TLS_AES_256_GCM_SHA384:
		return sha512.New384, sha512.Size384, 32, nil
	}
	return nil, 0, 0, fmt.Errorf("%w: %s", ErrSuite, tls.CipherSuiteName(id))
}

// NewHalf continues a direction from s. The error is [ErrSuite].
func NewHalf(s State) (Half, error) {
	if _, _, _, err := suite(s.Suite); err != nil {
		return Half{}, err
	}
	return Half{state: s}, nil
}

// State is the direction as it stands, for [NewHalf] elsewhere. Seal nothing
// here any more once another may have used it.
func (h *Half) State() State { return h.state }

// Wipe forgets the secret. Nothing can be sealed or opened any more.
func (h *Half) Wipe() { *h = Half{} }

// expand is HKDF-Expand-Label with an empty context (RFC 8446, section 7.1).
func (h *Half) expand(label string, n int) ([]byte, error) {
	newHash, secretLen, _, err := suite(h.state.Suite)
	if err != nil {
		return nil, err
	}
	info := make([]byte, 0, 32)
	info = binary.BigEndian.AppendUint16(info, uint16(n))
	info = append(info, byte(len("tls13 ")+len(label)))
	info = append(info, "tls13 "...)
	info = append(info, label...)
	info = append(info, 0)
	return hkdf.Expand(newHash, h.state.Secret[:secretLen], string(info), n)
}

// ready makes the cipher of the current secret (RFC 8446, section 7.3).
func (h *Half) ready() error {
	if h.aead != nil {
		return nil
	}
	_, _, keyLen, err := suite(h.state.Suite)
	if err != nil {
		return err
	}
	key, err := h.expand("key", keyLen)
	if err != nil {
		return err
	}
	defer clear(key)
	iv, err := h.expand("iv", len(h.iv))
	if err != nil {
		return err
	}
	copy(h.iv[:], iv)
	clear(iv)
	block, err := aes.NewCipher(key)
	if err != nil {
		return err
	}
	h.aead, err = cipher.NewGCM(block)
	return err
}

// Update goes on to the next secret (RFC 8446, section 7.2): for what we seal
// after a KeyUpdate of ours (see [Half.KeyUpdate], which does it), for what we
// open after one of the peer's (see [Receiver.Receive], which does it).
func (h *Half) Update() error {
	_, secretLen, _, err := suite(h.state.Suite)
	if err != nil {
		return err
	}
	next, err := h.expand("traffic upd", secretLen)
	if err != nil {
		return err
	}
	copy(h.state.Secret[:], next)
	clear(next)
	h.state.Seq, h.aead = 0, nil
	clear(h.iv[:])
	clear(h.nonce[:])
	return nil
}

// next takes a sequence number and makes its nonce (RFC 8446, section 5.3).
// The number that would be followed by none is never used.
func (h *Half) next() error {
	if err := h.ready(); err != nil {
		return err
	}
	if h.state.Seq == math.MaxUint64 {
		return breach(InternalError, "sequence numbers are used up")
	}
	h.nonce = h.iv
	low := h.nonce[4:]
	binary.BigEndian.PutUint64(low, binary.BigEndian.Uint64(low)^h.state.Seq)
	h.state.Seq++
	return nil
}

// Due reports whether the key has sealed so much that [Half.KeyUpdate] should
// follow before long.
func (h *Half) Due() bool { return h.state.Seq >= UpdateAfter }

// Seal makes a record of application data in slot, whose content is the n bytes
// at slot[HeaderLen:], at most [MaxContent]. The slot must have n + [Overhead]
// bytes, which is the length of the record and what Seal returns. The error is
// [ErrKeyLimit], or that of a Half that was wiped; the slot is unchanged then.
func (h *Half) Seal(slot []byte, n int) (int, error) {
	if h.state.Seq >= keyLimit {
		return 0, ErrKeyLimit
	}
	return h.seal(slot, n, ApplicationData)
}

func (h *Half) seal(slot []byte, n int, t Type) (int, error) {
	if n < 0 || n > MaxContent || len(slot) < n+Overhead {
		return 0, fmt.Errorf("seal %d bytes in a slot of %d", n, len(slot))
	}
	if err := h.next(); err != nil {
		return 0, err
	}
	header, inner := slot[:HeaderLen], slot[HeaderLen:HeaderLen+n+1]
	header[0], header[1], header[2] = byte(ApplicationData), 3, 3
	binary.BigEndian.PutUint16(header[3:], uint16(n+1+tagLen))
	inner[n] = byte(t)
	h.aead.Seal(inner[:0], h.nonce[:], inner, header)
	return n + Overhead, nil
}

// KeyUpdate makes the record of a KeyUpdate message in slot, which must have
// [ControlLen] bytes, and goes on to the next secret. With ask the peer is asked
// for a new key of its own. It returns the length of the record; what was
// sealed before must be sent before, and what is sealed after, after.
func (h *Half) KeyUpdate(slot []byte, ask bool) (int, error) {
	if len(slot) < ControlLen {
		return 0, fmt.Errorf("seal a KeyUpdate in a slot of %d", len(slot))
	}
	b := append(slot[HeaderLen:HeaderLen], keyUpdate, 0, 0, 1, 0)
	if ask {
		b[4] = 1
	}
	n, err := h.seal(slot, len(b), Handshake)
	if err != nil {
		return 0, err
	}
	return n, h.Update()
}

// ControlLen is room enough for what [Half.KeyUpdate] and [Half.Alert] make.
const ControlLen = Overhead + 5

// Alert makes the record of an alert in slot, which must have [ControlLen]
// bytes, and returns its length. Nothing may follow it: an alert of ours is the
// last thing that the peer reads.
func (h *Half) Alert(slot []byte, a Alert) (int, error) {
	if len(slot) < ControlLen {
		return 0, fmt.Errorf("seal an alert in a slot of %d", len(slot))
	}
	level := byte(2)
	if a == CloseNotify || a == UserCanceled {
		level = 1
	}
	slot[HeaderLen], slot[HeaderLen+1] = level, byte(a)
	return h.seal(slot, 2, AlertType)
}

// Length is the length of the record, header included, that b begins with: 0 if
// b ends within the header, and otherwise at most [MaxLength], whether or not b
// holds all of it. The error is an [*AlertError]: after the handshake only
// protected records may come, of a limited length (RFC 8446, sections 5 and
// 5.2). The version is ignored, as section 5.1 demands; but the tag covers it.
func Length(b []byte) (int, error) {
	if len(b) > 0 && Type(b[0]) != ApplicationData {
		return 0, breach(UnexpectedMessage, "a record of type %d after the handshake", b[0])
	}
	if len(b) < HeaderLen {
		return 0, nil
	}
	n := HeaderLen + int(binary.BigEndian.Uint16(b[3:]))
	if n > MaxLength {
		return 0, breach(RecordOverflow, "a record with a body of %d bytes", n-HeaderLen)
	}
	return n, nil
}

// Open decrypts in place the record that b is, from header to tag, and returns
// its content, which lies inside b, without padding. The error is an
// [*AlertError], and nothing may be opened after it.
func (h *Half) Open(b []byte) ([]byte, Type, error) {
	n, err := Length(b)
	switch {
	case err != nil:
		return nil, 0, err
	case n == 0 || n != len(b):
		return nil, 0, breach(InternalError, "open %d bytes as a record of %d", len(b), n)
	case n < HeaderLen+tagLen:
		return nil, 0, breach(BadRecordMAC, "a record with a body of %d bytes", n-HeaderLen)
	}
	if err := h.next(); err != nil {
		return nil, 0, err
	}
	body := b[HeaderLen:]
	inner, err := h.aead.Open(body[:0], h.nonce[:], body, b[:HeaderLen])
	if err != nil {
		return nil, 0, breach(BadRecordMAC, "record %d does not authenticate", h.state.Seq-1)
	}
	if len(inner) > MaxContent+1 {
		return nil, 0, breach(RecordOverflow, "a record with %d bytes inside", len(inner))
	}
	end := len(inner)
	for end > 0 && inner[end-1] == 0 {
		end--
	}
	if end == 0 {
		return nil, 0, breach(UnexpectedMessage, "a record of nothing but padding")
	}
	return inner[:end-1], Type(inner[end-1]), nil
}
