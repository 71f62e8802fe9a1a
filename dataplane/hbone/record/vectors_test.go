// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"strings"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func state(t testing.TB, secret string) State {
	s := State{Suite: tls.TLS_AES_128_GCM_SHA256}
	copy(s.Secret[:], unhex(t, secret))
	return s
}

// From RFC 8448, section 3: the traffic of a simple handshake's connection.
const (
	vectorClientSecret = "9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5"
	vectorClientKey    = "17422dda596ed5d9acd890e3c63f5051"
	vectorClientIV     = "5b78923dee08579033e523d9"
	vectorClientData   = `17 03 03 00 43
		a2 3f 70 54 b6 2c 94 d0 af fa fe 82 28 ba 55 cb ef ac ea 42 f9 14 aa 66 bc ab
		3f 2b 98 19 a8 a5 b4 6b 39 5b d5 4a 9a 20 44 1e 2b 62 97 4e 1f 5a 62 92 a2 97
		70 14 bd 1e 3d ea e6 3a ee bb 21 69 49 15 e4`
	vectorClientAlert = `17 03 03 00 13 c9 87 27 60 65 56 66 b7 4d 7f f1 15 3e fd 6d b6 d0 b0 e3`

	vectorServerSecret = "a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643"
	vectorServerKey    = "9f02283b6c9c07efc26bb9f2ac92e356"
	vectorServerIV     = "cf782b88dd83549aadf1e984"
	vectorServerTicket = `17 03 03 00 de
		3a 6b 8f 90 41 4a 97 d6 95 9c 34 87 68 0d e5 13 4a 2b 24 0e 6c ff ac 11 6e 95
		d4 1d 6a f8 f6 b5 80 dc f3 d1 1d 63 c7 58 db 28 9a 01 59 40 25 2f 55 71 3e 06
		1d c1 3e 07 88 91 a3 8e fb cf 57 53 ad 8e f1 70 ad 3c 73 53 d1 6d 9d a7 73 b9
		ca 7f 2b 9f a1 b6 c0 d4 a3 d0 3f 75 e0 9c 30 ba 1e 62 97 2a c4 6f 75 f7 b9 81
		be 63 43 9b 29 99 ce 13 06 46 15 13 98 91 d5 e4 c5 b4 06 f1 6e 3f c1 81 a7 7c
		a4 75 84 00 25 db 2f 0a 77 f8 1b 5a b0 5b 94 c0 13 46 75 5f 69 23 2c 86 51 9d
		86 cb ee ac 87 aa c3 47 d1 43 f9 60 5d 64 f6 50 db 4d 02 3e 70 e9 52 ca 49 fe
		51 37 12 1c 74 bc 26 97 68 7e 24 87 46 d6 df 35 30 05 f3 bc e1 86 96 12 9c 81
		53 55 6b 3b 6c 67 79 b3 7b f1 59 85 68 4f`
	vectorServerData = `17 03 03 00 43
		2e 93 7e 11 ef 4a c7 40 e5 38 ad 36 00 5f c4 a4 69 32 fc 32 25 d0 5f 82 aa 1b
		36 e3 0e fa f9 7d 90 e6 df fc 60 2d cb 50 1a 59 a8 fc c4 9c 4b f2 e5 f0 a2 1c
		00 47 c2 ab f3 32 54 0d d0 32 e1 67 c2 95 5d`
	vectorServerAlert = `17 03 03 00 13 b5 8f d6 71 66 eb f5 99 d2 47 20 cf be 7e fa 7a 88 64 a9`
)

func vectorPayload() []byte {
	b := make([]byte, 50)
	for i := range b {
		b[i] = byte(i)
	}
	return b
}

func TestDerivesTheKeysOfRFC8448(t *testing.T) {
	for _, v := range []struct{ name, secret, key, iv string }{
		{"client", vectorClientSecret, vectorClientKey, vectorClientIV},
		{"server", vectorServerSecret, vectorServerKey, vectorServerIV},
	} {
		h, err := NewHalf(state(t, v.secret))
		if err != nil {
			t.Fatal(err)
		}
		key, err := h.expand("key", 16)
		if err != nil || !bytes.Equal(key, unhex(t, v.key)) {
			t.Errorf("%s key %x, %v; want %s", v.name, key, err, v.key)
		}
		if err := h.ready(); err != nil || !bytes.Equal(h.iv[:], unhex(t, v.iv)) {
			t.Errorf("%s iv %x, %v; want %s", v.name, h.iv, err, v.iv)
		}
	}
}

func TestSealsTheRecordsOfRFC8448(t *testing.T) {
	h, err := NewHalf(state(t, vectorClientSecret))
	if err != nil {
		t.Fatal(err)
	}
	slot := make([]byte, 50+Overhead)
	copy(slot[HeaderLen:], vectorPayload())
	n, err := h.Seal(slot, 50)
	if want := unhex(t, vectorClientData); err != nil || !bytes.Equal(slot[:n], want) {
		t.Errorf("data: %x, %v\nwant  %x", slot[:n], err, want)
	}
	n, err = h.Alert(slot, CloseNotify)
	if want := unhex(t, vectorClientAlert); err != nil || !bytes.Equal(slot[:n], want) {
		t.Errorf("close_notify: %x, %v\nwant %x", slot[:n], err, want)
	}
}

func TestOpensTheRecordsOfRFC8448(t *testing.T) {
	r, err := NewReceiver(ReceiverState{State: state(t, vectorServerSecret), Client: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name, record string
		event        Event
		content      []byte
	}{
		{"ticket", vectorServerTicket, Nothing, nil},
		{"data", vectorServerData, Data, vectorPayload()},
		{"close_notify", vectorServerAlert, Closed, nil},
	} {
		content, event, err := r.Receive(unhex(t, step.record))
		if err != nil || event != step.event || !bytes.Equal(content, step.content) {
			t.Errorf("%s: %x, event %d, %v", step.name, content, event, err)
		}
	}
}

// vectorStream is all that the server of the vectors sends after its handshake.
func vectorStream(t testing.TB) []byte {
	return bytes.Join([][]byte{unhex(t, vectorServerTicket), unhex(t, vectorServerData), unhex(t, vectorServerAlert)}, nil)
}

func TestEveryPrefixIsALengthOrAWait(t *testing.T) {
	rec := unhex(t, vectorServerData)
	for n := range len(rec) {
		got, err := Length(rec[:n])
		want := 0
		if n >= HeaderLen {
			want = len(rec)
		}
		if err != nil || got != want {
			t.Errorf("Length of the first %d bytes: %d, %v; want %d", n, got, err, want)
		}
		r, err := NewReceiver(ReceiverState{State: state(t, vectorServerSecret), Client: true})
		if err != nil {
			t.Fatal(err)
		}
		if b, event, err := r.Receive(bytes.Clone(rec[:n])); err == nil {
			t.Errorf("the first %d bytes are opened: %x, %d", n, b, event)
		}
		if r.State().Seq != 0 {
			t.Errorf("the first %d bytes used sequence number 0", n)
		}
	}
}
