// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/sha256"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"testing"

	"github.com/CycloneDX/cyclonedx-go"
)

// build builds this very program into a directory of its own.
func build(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "sbom")
	if out, err := exec.Command("go", "build", "-trimpath", "-o", file, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return file
}

func TestADocumentTellsWhatIsInAProgram(t *testing.T) {
	file := build(t)
	if err := write(file); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file + suffix)
	if err != nil {
		t.Fatal(err)
	}
	var bom cyclonedx.BOM
	if err := cyclonedx.NewBOMDecoder(bytes.NewReader(text), cyclonedx.BOMFileFormatJSON).Decode(&bom); err != nil {
		t.Fatal(err)
	}
	if self := bom.Metadata.Component; self.Name != "sbom" || self.Hashes == nil || len((*self.Hashes)[0].Value) != 64 {
		t.Errorf("the program is %+v", self)
	}
	if bom.SerialNumber == "" {
		t.Error("no serial number")
	}
	for _, want := range []struct {
		name    string
		version string
		sums    int
	}{
		{"std", runtime.Version()[len("go"):], 0},
		{"github.com/CycloneDX/cyclonedx-go", "v0.12.0", 1},
	} {
		i := slices.IndexFunc(*bom.Components, func(c cyclonedx.Component) bool { return c.Name == want.name })
		if i < 0 {
			t.Errorf("no %s", want.name)
			continue
		}
		c := (*bom.Components)[i]
		sums := 0
		if c.Hashes != nil {
			sums = len(*c.Hashes)
		}
		if c.Version != want.version || sums != want.sums {
			t.Errorf("%s has version %s and %d sums, want %s and %d", c.Name, c.Version, sums, want.version, want.sums)
		}
		if !slices.Contains(*(*bom.Dependencies)[0].Dependencies, c.BOMRef) {
			t.Errorf("the program does not depend on %s", c.Name)
		}
	}

	if err := write(file); err != nil {
		t.Fatal(err)
	}
	if again, err := os.ReadFile(file + suffix); err != nil || !bytes.Equal(again, text) {
		t.Errorf("the second time it is another document: %v\n%s", err, again)
	}
}

func TestTheTimeIsTheCommits(t *testing.T) {
	const time = "2026-01-02T03:04:05Z"
	info := &debug.BuildInfo{
		Path: "example.com/a/cmd/b", Main: debug.Module{Path: "example.com/a", Version: "v1.2.3"},
		Settings: []debug.BuildSetting{{Key: "vcs.time", Value: time}},
		Deps:     []*debug.Module{{Path: "example.com/old", Version: "v1", Replace: &debug.Module{Path: "example.com/new", Version: "v2"}}},
	}
	bom, err := describe("b-linux-amd64", [sha256.Size]byte{1}, info)
	if err != nil {
		t.Fatal(err)
	}
	if bom.Metadata.Timestamp != time {
		t.Errorf("the time is %q", bom.Metadata.Timestamp)
	}
	if purl := bom.Metadata.Component.PackageURL; purl != "pkg:golang/example.com/a@v1.2.3#cmd/b" {
		t.Errorf("the program is %s", purl)
	}
	if last := (*bom.Components)[1].PackageURL; last != "pkg:golang/example.com/new@v2" {
		t.Errorf("in the place of what was replaced there is %s", last)
	}
}

func TestWhatIsNoGoProgramIsRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(file, []byte("no program"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := write(file); err == nil {
		t.Error("a document of a text")
	}
	if err := write(file + "-gone"); err == nil {
		t.Error("a document of nothing")
	}
	c := component(cyclonedx.ComponentTypeLibrary, "a", "v1")
	for _, sum := range []string{"h2:AAAA", "h1:AAAA", "h1:!"} {
		if err := addSum(&c, sum); err == nil {
			t.Errorf("the sum %q is taken", sum)
		}
	}
}
