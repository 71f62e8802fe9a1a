// SPDX-License-Identifier: Apache-2.0

// Sbom writes the bill of materials of Go programs: for each file named, a
// CycloneDX document beside it, with the ending .cdx.json.
//
// All that is in it was read from the program: the modules that the linker has
// put there, with their sums, Go's standard library, and how it was built. So
// the same program has the same document, to the byte: its time is the
// commit's, its serial number is made of the program's sum.
package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"runtime/debug"
	"strings"

	"github.com/CycloneDX/cyclonedx-go"
)

// suffix is what a document's name has behind the program's.
const suffix = ".cdx.json"

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "sbom: name the programs")
		os.Exit(1)
	}
	for _, file := range os.Args[1:] {
		if err := write(file); err != nil {
			fmt.Fprintf(os.Stderr, "sbom: %s: %v\n", file, err)
			os.Exit(1)
		}
	}
}

func write(file string) error {
	program, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	info, err := buildinfo.ReadFile(file)
	if err != nil {
		return err
	}
	bom, err := describe(filepath.Base(file), sha256.Sum256(program), info)
	if err != nil {
		return err
	}
	out, err := os.Create(file + suffix)
	if err != nil {
		return err
	}
	return errors.Join(cyclonedx.NewBOMEncoder(out, cyclonedx.BOMFileFormatJSON).SetPretty(true).EncodeVersion(bom, cyclonedx.SpecVersion1_6), out.Close())
}

// describe makes the document of the program name, whose content has the sum
// given.
func describe(name string, sum [sha256.Size]byte, info *debug.BuildInfo) (*cyclonedx.BOM, error) {
	self := component(cyclonedx.ComponentTypeApplication, info.Main.Path, info.Main.Version)
	self.PackageURL += "#" + strings.TrimPrefix(strings.TrimPrefix(info.Path, info.Main.Path), "/")
	self.BOMRef, self.Name = self.PackageURL, path.Base(info.Path)
	self.Hashes = &[]cyclonedx.Hash{{Algorithm: cyclonedx.HashAlgoSHA256, Value: hex.EncodeToString(sum[:])}}
	properties := []cyclonedx.Property{{Name: "file", Value: name}}
	bom := cyclonedx.NewBOM()
	bom.SerialNumber = serial(sum)
	bom.Metadata = &cyclonedx.Metadata{Component: &self}
	for _, s := range info.Settings {
		if s.Key == "vcs.time" {
			bom.Metadata.Timestamp = s.Value
		}
		properties = append(properties, cyclonedx.Property{Name: "go:" + s.Key, Value: s.Value})
	}
	self.Properties = &properties

	std := component(cyclonedx.ComponentTypeLibrary, "std", strings.TrimPrefix(info.GoVersion, "go"))
	parts, uses := []cyclonedx.Component{std}, []string{std.BOMRef}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		c := component(cyclonedx.ComponentTypeLibrary, m.Path, m.Version)
		if err := addSum(&c, m.Sum); err != nil {
			return nil, err
		}
		parts, uses = append(parts, c), append(uses, c.BOMRef)
	}
	bom.Components = &parts
	// The linker's list is flat: who of them needs whom is not known here.
	bom.Dependencies = &[]cyclonedx.Dependency{{Ref: self.BOMRef, Dependencies: &uses}}
	return bom, nil
}

func component(kind cyclonedx.ComponentType, module, version string) cyclonedx.Component {
	purl := "pkg:golang/" + module + "@" + version
	return cyclonedx.Component{BOMRef: purl, Type: kind, Name: module, Version: version, PackageURL: purl}
}

// addSum adds what go.sum has of a module, the SHA-256 of its files' sums.
// Of a replacement by a directory there is none.
func addSum(c *cyclonedx.Component, sum string) error {
	if sum == "" {
		return nil
	}
	encoded, ok := strings.CutPrefix(sum, "h1:")
	raw, err := base64.StdEncoding.DecodeString(encoded)
	if !ok || err != nil || len(raw) != sha256.Size {
		return fmt.Errorf("module %s: its sum %q is not of the kind h1", c.Name, sum)
	}
	c.Hashes = &[]cyclonedx.Hash{{Algorithm: cyclonedx.HashAlgoSHA256, Value: hex.EncodeToString(raw)}}
	return nil
}

// serial is a UUID of version 8 (RFC 9562 5.8), made of a sum.
func serial(sum [sha256.Size]byte) string {
	u := sum[:16]
	u[6] = u[6]&0x0f | 0x80
	u[8] = u[8]&0x3f | 0x80
	return fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}
