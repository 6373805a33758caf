output "client_url" {
  description = "The URL that clients connect to. They trust the CA in `ca_certificate`."
  value       = "tls://${aws_route53_record.clients.fqdn}:4222"
}

output "ca_certificate" {
  description = "The root certificate, in PEM. Clients that can read the trust bundle's secret should trust that bundle instead, because a rotation of the CA updates the bundle."
  value       = aws_acmpca_certificate.root.certificate
}

output "ca_arn" {
  description = "The private CA."
  value       = aws_acmpca_certificate_authority.this.arn
}

output "trust_secret_arn" {
  description = "The trust bundle's secret."
  value       = aws_secretsmanager_secret.trust.arn
}

output "connection_secret_arn" {
  description = "The secret of the connection document, or null. Readers need secretsmanager:GetSecretValue on it, and kms:Decrypt on secrets_key_arn."
  value       = one(aws_secretsmanager_secret.connection[*].arn)
}

output "cluster_secret_arn" {
  description = "The cluster credential's secret, which only the nodes can read."
  value       = aws_cloudformation_stack.cluster_credential.outputs["Arn"]
}

output "secrets_key_arn" {
  description = "The KMS key of both secrets. Readers of the trust bundle need kms:Decrypt on this key."
  value       = aws_kms_key.secrets.arn
}

output "autoscaling_group_name" {
  description = "The name of the Auto Scaling group and of the NATS cluster."
  value       = aws_autoscaling_group.node.name
}

output "node_role_name" {
  description = "The nodes' role."
  value       = aws_iam_role.node.name
}

output "node_security_group_id" {
  description = "The nodes' security group."
  value       = aws_security_group.node.id
}

output "load_balancer_arn" {
  description = "The load balancer of the clients."
  value       = aws_lb.clients.arn
}

output "clients_security_group_id" {
  description = "The security group of the load balancer. Clients connect to this group and to the nodes' group."
  value       = aws_security_group.clients.id
}
