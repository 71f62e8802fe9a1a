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

// The tests of this package are built as the binary is, with fips140=on.
func TestWorksInFIPSMode(t *testing.T) {
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

// fipsOnly says in the environment that this is the process of the other mode.
const fipsOnly = "RECORD_TEST_FIPS_ONLY"

// Should this fail some day, Available's comment and the rule that such a build
// leaves connections to crypto/tls want another look.
func TestIsNotAvailableUnderFIPSOnly(t *testing.T) {
	if os.Getenv(fipsOnly) != "" {
		if err := record.Available(); err == nil || !strings.Contains(err.Error(), "arbitrary IVs") {
			t.Errorf("under fips140=only: %v", err)
		}
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^TestIsNotAvailableUnderFIPSOnly$", "-test.v")
	cmd.Env = append(os.Environ(), "GODEBUG=fips140=only", fipsOnly+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestIsNotAvailableUnderFIPSOnly ") {
		t.Errorf("%v\n%s", err, out)
	}
}
