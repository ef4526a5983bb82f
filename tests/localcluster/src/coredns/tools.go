//go:build tools

// Package coredns pins the name server that the local cluster compiles.
package coredns

import _ "github.com/coredns/coredns"
