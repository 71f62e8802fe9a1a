// SPDX-License-Identifier: Apache-2.0

package record_test

import (
	"crypto/fips140"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/record"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

// inMode runs one test of this binary in a process of its own under a FIPS mode.
func inMode(t *testing.T, mode, test string) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^"+test+"$", "-test.v")
	cmd.Env = append(os.Environ(), "GODEBUG=fips140="+mode, fipsMode+"="+mode)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+test+" ") {
		t.Errorf("under fips140=%s: %v\n%s", mode, err, out)
	}
	return string(out)
}

const fipsMode = "RECORD_TEST_FIPS"

// The binary is built with fips140=on.
func TestWorksInFIPSMode(t *testing.T) {
	if os.Getenv(fipsMode) == "" {
		inMode(t, "on", "TestWorksInFIPSMode")
		return
	}
	leak.Check(t)
	if !fips140.Enabled() {
		t.Fatal("FIPS mode is not on")
	}
	if err := record.Available(); err != nil {
		t.Fatal(err)
	}
	a, b := shaken(t)
	piece := noise(100_000)
	a.send(piece)
	b.expect(piece)
	b.update(true)
	b.send(piece)
	a.expect(piece)
	a.send(piece)
	b.expect(piece)
	if suite := a.s.TLS.CipherSuite; suite != 0x1301 && suite != 0x1302 {
		t.Errorf("suite %04x", suite)
	}
}

// Should this fail some day, Available's comment and TLS_ENGINE's rule want
// another look.
func TestIsNotAvailableUnderFIPSOnly(t *testing.T) {
	if os.Getenv(fipsMode) == "" {
		if err := record.Available(); err != nil {
			t.Errorf("outside FIPS mode: %v", err)
		}
		inMode(t, "only", "TestIsNotAvailableUnderFIPSOnly")
		return
	}
	err := record.Available()
	if err == nil || !strings.Contains(err.Error(), "arbitrary IVs") {
		t.Errorf("under fips140=only: %v", err)
	}
}
