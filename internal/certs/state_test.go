// SPDX-License-Identifier: Apache-2.0

package certs_test

import (
	"bytes"
	"encoding/pem"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/certs"
)

func TestStatesAreSortedAndComplete(t *testing.T) {
	inBubble(t, time.Hour, certs.Config{}, func(t *testing.T, b *bench) {
		available := b.get("b")
		b.fail(errors.New("down"))
		if b.getErr("c") == nil {
			t.Fatal("no error")
		}
		b.gate()
		b.waiting("a", certs.RealTime)

		if want := "a: Initializing; b: Available; c: Unavailable: down"; b.state() != want {
			t.Errorf("states %q, want %q", b.state(), want)
		}
		states := b.States()
		if len(states[0].Chain)+len(states[0].Roots)+len(states[2].Chain)+len(states[2].Roots) != 0 {
			t.Error("certificates are shown where there is none")
		}
		if len(states[1].Chain) != 1 || len(states[1].Roots) != 1 {
			t.Fatalf("%+v", states[1])
		}
		leaf := states[1].Chain[0]
		if leaf != certs.Describe(available.Leaf) || leaf.SerialNumber != available.Leaf.SerialNumber.String() ||
			!leaf.ValidFrom.Equal(available.Leaf.NotBefore) || !leaf.ExpirationTime.Equal(available.Leaf.NotAfter) {
			t.Errorf("%+v", leaf)
		}
		if states[1].Roots[0] != certs.Describe(b.ca.Root()) {
			t.Errorf("%+v", states[1].Roots[0])
		}
	})
}

func TestPEMHasSixtyColumns(t *testing.T) {
	inBubble(t, time.Hour, certs.Config{}, func(t *testing.T, b *bench) {
		cert := b.get("a").Leaf
		text := certs.Describe(cert).PEM
		block, rest := pem.Decode([]byte(text))
		if block == nil || len(rest) != 0 || !bytes.Equal(block.Bytes, cert.Raw) {
			t.Fatalf("not the certificate: %q", text)
		}
		lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
		for i, line := range lines[1 : len(lines)-2] {
			if len(line) != 60 {
				t.Errorf("line %d has %d characters", i+1, len(line))
			}
		}
	})
}
