// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"archive/tar"
	"compress/gzip"
	"debug/elf"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	image "github.com/opencontainers/image-spec/specs-go/v1"
)

// An unpacked image is a root filesystem and how to run it.
type unpacked struct {
	rootfs string
	config image.ImageConfig
	digest string   // of the manifest
	files  []string // directories excepted
}

// buildImage builds the Dockerfile around a binary, and unpacks what came out.
func buildImage(t *testing.T, binary string) unpacked {
	t.Helper()
	dir := t.TempDir()
	dist := filepath.Join(dir, "context/bin/dist")
	must(t, os.MkdirAll(dist, 0o755))
	must(t, os.Link(binary, filepath.Join(dist, "ztunnel-linux-"+runtime.GOARCH)))
	file, err := filepath.Abs(filepath.Join(deployDir, "Dockerfile"))
	must(t, err)
	// A store of its own, and no overlay: the test leaves nothing behind.
	store := []string{"--root", filepath.Join(dir, "store"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "vfs"}
	buildah(t, store, "build", "--format", "oci", "--timestamp", "0", "--build-arg", "TARGETARCH="+runtime.GOARCH,
		"-f", file, "-t", "ztunnel:test", filepath.Join(dir, "context"))
	layout := filepath.Join(dir, "layout")
	buildah(t, store, "push", "ztunnel:test", "oci:"+layout+":test")
	return unpack(t, layout)
}

func buildah(t *testing.T, store []string, args ...string) {
	t.Helper()
	out, err := exec.Command(tool(t, "buildah"), slices.Concat(store, args)...).CombinedOutput()
	if err != nil {
		t.Fatalf("buildah %v: %v\n%s", args, err, out)
	}
}

// unpack reads an OCI layout of one image.
func unpack(t *testing.T, layout string) unpacked {
	t.Helper()
	var index image.Index
	var manifest image.Manifest
	var config image.Image
	readJSON(t, filepath.Join(layout, "index.json"), &index)
	blob := func(d image.Descriptor) string {
		return filepath.Join(layout, "blobs", d.Digest.Algorithm().String(), d.Digest.Encoded())
	}
	readJSON(t, blob(index.Manifests[0]), &manifest)
	readJSON(t, blob(manifest.Config), &config)
	u := unpacked{rootfs: t.TempDir(), config: config.Config, digest: index.Manifests[0].Digest.String()}
	must(t, os.Chmod(u.rootfs, 0o755)) // of the temporary directory; layers need not tell of the root
	for _, layer := range manifest.Layers {
		f, err := os.Open(blob(layer))
		must(t, err)
		defer f.Close()
		var content io.Reader = f
		if strings.HasSuffix(layer.MediaType, "gzip") {
			content, err = gzip.NewReader(f)
			must(t, err)
		}
		u.extract(t, tar.NewReader(content))
	}
	return u
}

// extract puts what a layer has into the root filesystem.
func (u *unpacked) extract(t *testing.T, layer *tar.Reader) {
	t.Helper()
	for {
		h, err := layer.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		must(t, err)
		path := filepath.Join(u.rootfs, filepath.Clean("/"+h.Name))
		switch h.Typeflag {
		case tar.TypeDir:
			must(t, os.MkdirAll(path, h.FileInfo().Mode().Perm()))
		case tar.TypeReg:
			u.files = append(u.files, "/"+strings.TrimPrefix(h.Name, "/"))
			out, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_EXCL, h.FileInfo().Mode().Perm())
			must(t, err)
			_, err = io.Copy(out, layer)
			must(t, errors.Join(err, out.Close()))
		default:
			t.Errorf("%s is neither file nor directory", h.Name)
		}
	}
}

func readJSON(t *testing.T, file string, into any) {
	t.Helper()
	text, err := os.ReadFile(file)
	must(t, err)
	must(t, json.Unmarshal(text, into))
}

func TestTheImageHoldsAStaticBinaryAndNothingElse(t *testing.T) {
	needTools(t)
	binary := build(t)
	u := buildImage(t, binary)
	if !slices.Equal(u.files, []string{"/usr/local/bin/ztunnel"}) {
		t.Errorf("it holds %v", u.files)
	}
	// Istio's chart gives arguments and no command, and paths that begin at /.
	if !slices.Equal(u.config.Entrypoint, []string{"/usr/local/bin/ztunnel"}) || u.config.WorkingDir != "/" && u.config.WorkingDir != "" {
		t.Errorf("entry point %v, directory %q", u.config.Entrypoint, u.config.WorkingDir)
	}
	program, err := elf.Open(filepath.Join(u.rootfs, "usr/local/bin/ztunnel"))
	must(t, err)
	defer program.Close()
	for _, p := range program.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("the binary wants a dynamic linker")
		}
	}
	if again := buildImage(t, binary); again.digest != u.digest {
		t.Errorf("of the same binary another image: %s and %s", u.digest, again.digest)
	}
}

// build builds the proxy as it is here, in its own module and as make build does.
func build(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "ztunnel")
	cmd := exec.Command("go", "build", "-trimpath", "-o", binary, "./cmd/ztunnel")
	cmd.Dir = "../.."
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build ztunnel: %v\n%s", err, out)
	}
	return binary
}
