// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"errors"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// dumpOf is the dump of a mesh, and nothing else.
func dumpOf(t testing.TB, view mesh.View) string {
	t.Helper()
	d := Dump{
		View: view, Certificates: func() []Certificate { return nil }, Static: func() Static { return Static{} },
		Config: func() any { return map[string]string{"network": "n"} }, Version: func() any { return nil },
	}
	w := httptest.NewRecorder()
	d.serve(w, httptest.NewRequest("GET", "/config_dump", nil))
	return w.Body.String()
}

func TestADumpIsReadBack(t *testing.T) {
	text := dumpOf(t, fullDump().View)
	p, err := ReadDump([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if p.Network != "n" {
		t.Errorf("network %q", p.Network)
	}
	store := mesh.NewStore()
	p.Apply(store)
	if again := dumpOf(t, store.View()); again != text {
		t.Errorf("it was\n%s\nand is\n%s", text, again)
	}
}

func TestWhatIsNoDumpIsRefused(t *testing.T) {
	for text, want := range map[string]string{
		"":                  "read config dump",
		"{}":                ErrNoDump.Error(),
		`{"workloads": []}`: ErrNoDump.Error(),
		`{"config":{},"workloads":[{"uid":"u","protocol":"QUIC"}]}`:                                                         `workload "u": protocol "QUIC" is not understood`,
		`{"config":{},"workloads":[{"uid":"u","protocol":"unknown"}]}`:                                                      `protocol "unknown"`,
		`{"config":{},"workloads":[{"uid":"u","workloadIps":["x"]}]}`:                                                       `address "x"`,
		`{"config":{},"workloads":[{"uid":"u","services":["x"]}]}`:                                                          `service "x"`,
		`{"config":{},"services":[{"hostname":"h","namespace":"n","vips":["x"]}]}`:                                          `service "n/h": address "x"`,
		`{"config":{},"services":[{"hostname":"h","cidrVips":[{"cidr":"x"}]}]}`:                                             `range of addresses "x"`,
		`{"config":{},"services":[{"hostname":"h","waypoint":{"destination":"x"}}]}`:                                        `gateway "x"`,
		`{"config":{},"policies":[{"name":"p","namespace":"n","rules":[[[{"principals":[{"Regex":"x"}]}]]]}]}`:              `policy "n/p": match "Regex"`,
		`{"config":{},"policies":[{"name":"p","namespace":"n","rules":[[[{"principals":[{"Exact":1}]}]]]}]}`:                `match`,
		`{"config":{},"policies":[{"name":"p","namespace":"n","rules":[[[{"principals":[{"Exact":"a","Prefix":"b"}]}]]]}]}`: `match`,
	} {
		if _, err := ReadDump([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func TestEveryPrefixOfADumpIsRefused(t *testing.T) {
	text := dumpOf(t, fullDump().View)
	for i := range text {
		if _, err := ReadDump([]byte(text[:i])); err == nil {
			t.Fatalf("%d bytes of %d are taken", i, len(text))
		}
	}
}

// FuzzReadDump holds that what is read can be shown and read again.
func FuzzReadDump(f *testing.F) {
	if text, err := os.ReadFile("testdata/config_dump_full.json"); err == nil {
		f.Add(text)
	}
	f.Add([]byte(dumpOf(f, fullDump().View)))
	f.Add([]byte(`{"config":{},"policies":[{"rules":[[[{"principals":[{"Presence":[]}]}]]]}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := ReadDump(text)
		if err != nil {
			if errors.Is(err, ErrNoDump) && p != nil {
				t.Error("both a picture and an error")
			}
			return
		}
		store := mesh.NewStore()
		p.Apply(store)
		if _, err := ReadDump([]byte(dumpOf(t, store.View()))); err != nil {
			t.Errorf("what was read from %q is not read again: %v", text, err)
		}
	})
}
