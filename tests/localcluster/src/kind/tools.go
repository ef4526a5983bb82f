//go:build tools

// Package kind pins the program that makes a cluster of containers where a Docker engine runs.
package kind

import _ "sigs.k8s.io/kind"
