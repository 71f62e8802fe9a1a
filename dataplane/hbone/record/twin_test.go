// SPDX-License-Identifier: Apache-2.0

package record

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"hash"
)

// A twin is the record layer in the plainest form, read off RFC 8446 without a
// look at the package: it opens, seals any type with any padding, and fails if a
// nonce comes a second time under one key.
type twin struct {
	hash   func() hash.Hash
	key    int
	secret []byte
	seq    uint64
	used   map[string]bool
}

func newTwin(s State) *twin {
	if s.Suite == tls.TLS_AES_128_GCM_SHA256 {
		return &twin{sha256.New, 16, append([]byte(nil), s.Secret[:32]...), s.Seq, map[string]bool{}}
	}
	return &twin{sha512.New384, 32, append([]byte(nil), s.Secret[:48]...), s.Seq, map[string]bool{}}
}

// label is HKDF-Expand-Label by hand, for up to one block of the hash.
func (w *twin) label(label string, n int) []byte {
	m := hmac.New(w.hash, w.secret)
	m.Write([]byte{0, byte(n), byte(6 + len(label))})
	m.Write([]byte("tls13 " + label + "\x00\x01"))
	return m.Sum(nil)[:n]
}

func (w *twin) aead() (cipher.AEAD, []byte) {
	key := w.label("key", w.key)
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	g, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	nonce := w.label("iv", 12)
	for i := range 8 {
		nonce[4+i] ^= byte(w.seq >> (56 - 8*i))
	}
	w.seq++
	return g, nonce
}

func (w *twin) update() { w.secret, w.seq = w.label("traffic upd", len(w.secret)), 0 }

// seal makes a record of any type with padding after it.
func (w *twin) seal(t Type, content []byte, padding int) []byte {
	return w.sealInner(append(append(append([]byte(nil), content...), byte(t)), make([]byte, padding)...))
}

func (w *twin) sealInner(inner []byte) []byte {
	header := binary.BigEndian.AppendUint16([]byte{23, 3, 3}, uint16(len(inner)+16))
	g, nonce := w.aead()
	return g.Seal(header, nonce, inner, header)
}

// open returns what is inside a record, type and padding included.
func (w *twin) open(rec []byte) ([]byte, error) {
	g, nonce := w.aead()
	mark := fmt.Sprintf("%x %x", w.secret, nonce)
	if w.used[mark] {
		return nil, fmt.Errorf("nonce %x comes a second time under one key", nonce)
	}
	w.used[mark] = true
	return g.Open(nil, nonce, rec[5:], rec[:5])
}
