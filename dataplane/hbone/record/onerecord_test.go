// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/iotest"
)

// A script is a connection that yields what a reader does.
type script struct {
	net.Conn
	io.Reader
}

func (s script) Read(p []byte) (int, error) { return s.Reader.Read(p) }

func scripted(r io.Reader) *oneRecord { return &oneRecord{Conn: script{Reader: r}} }

func TestHandsOutOneRecordAtATime(t *testing.T) {
	stream := vectorStream(t)
	stream = append(stream, append([]byte{22, 3, 3, 0x40, 0}, make([]byte, 1<<14)...)...)
	var ends []int
	for end := 0; end < len(stream); {
		end += HeaderLen + int(stream[end+3])<<8 + int(stream[end+4])
		ends = append(ends, end)
	}
	for name, r := range map[string]io.Reader{
		"all at once":   bytes.NewReader(stream),
		"byte by byte":  iotest.OneByteReader(bytes.NewReader(stream)),
		"half of it":    iotest.HalfReader(bytes.NewReader(stream)),
		"data with EOF": iotest.DataErrReader(bytes.NewReader(stream)),
	} {
		c := scripted(r)
		at := 0
		p := make([]byte, 600)
		for k := 0; at < len(stream); {
			n, err := c.Read(p)
			if err != nil || !bytes.Equal(p[:n], stream[at:at+n]) {
				t.Fatalf("%s: at %d %d bytes, %v", name, at, n, err)
			}
			if at += n; at > ends[k] {
				t.Fatalf("%s: read to %d, beyond the record that ends at %d", name, at, ends[k])
			}
			rest, err := c.rest()
			if whole := at == ends[k]; whole != (err == nil) {
				t.Fatalf("%s: at %d of a record that ends at %d: %v", name, at, ends[k], err)
			} else if whole {
				if !bytes.HasPrefix(stream[at:], rest) {
					t.Fatalf("%s: at %d the rest is wrong", name, at)
				}
				k++
			}
		}
		if n, err := c.Read(p); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("%s: at the end %d, %v", name, n, err)
		}
	}
}

func TestATimeoutLosesNothing(t *testing.T) {
	stream := vectorStream(t)
	for cut := range 12 {
		c := scripted(io.MultiReader(bytes.NewReader(stream[:cut]), iotest.ErrReader(os.ErrDeadlineExceeded)))
		var got []byte
		p := make([]byte, 600)
		for {
			n, err := c.Read(p)
			got = append(got, p[:n]...)
			if err != nil {
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Fatal(err)
				}
				break
			}
		}
		c.Conn = script{Reader: bytes.NewReader(stream[cut:])}
		more, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(append(got, more...), stream) {
			t.Errorf("cut at %d: %d and %d bytes, %v", cut, len(got), len(more), err)
		}
	}
}

func TestKeepsNoLineOfTheKeyLog(t *testing.T) {
	var k keyLog
	for _, tc := range []struct {
		line string
		good bool
	}{
		{"CLIENT_HANDSHAKE_TRAFFIC_SECRET 00 0102\n", true},
		{"CLIENT_TRAFFIC_SECRET_0 00 0102\n", true},
		{"SERVER_TRAFFIC_SECRET_0 00 030405\n", true},
		{"EXPORTER_SECRET 00 0102\n", true},
		{"SERVER_TRAFFIC_SECRET_0 00 0g\n", false},
		{"CLIENT_TRAFFIC_SECRET_0 00 " + string(bytes.Repeat([]byte("00"), MaxSecret+1)) + "\n", false},
	} {
		line := []byte(tc.line)
		if n, err := k.Write(line); (err == nil) != tc.good || tc.good && n != len(line) {
			t.Errorf("%q: %d, %v", tc.line, n, err)
		}
		if !bytes.Equal(line, make([]byte, len(line))) {
			t.Errorf("%q is left as %q", tc.line, line)
		}
	}
	if k.client.n != 2 || !bytes.Equal(k.client.b[:3], []byte{1, 2, 0}) || k.server.n != 3 {
		t.Errorf("kept %+v", k)
	}
	if k.wipe(); k != (keyLog{}) {
		t.Error("something is left after wipe")
	}
}
